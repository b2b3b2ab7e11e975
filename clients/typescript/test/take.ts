// What tests do with a subscriber.

import type { Message, Subscriber } from "../src/index.js";

/** The next so many messages. The subscriber goes on. */
export async function take(subscriber: Subscriber, count: number): Promise<Message[]> {
  const found: Message[] = [];
  while (found.length < count) {
    const { value, done } = await subscriber.next();
    if (done === true) {
      throw new Error(`it has ended after ${found.length} of ${count} messages`);
    }
    found.push(value);
  }
  return found;
}

export async function ids(subscriber: Subscriber, count: number): Promise<number[]> {
  return (await take(subscriber, count)).map((message) => Number(message.id));
}
