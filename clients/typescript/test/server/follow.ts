// Follow a channel and print, as JSON lines, each message and gap, and the first position.
//
//   tsx follow.ts <count> <acknowledge so many> <options of subscribe() as JSON>

import type { SubscribeOptions } from "../../src/index.js";
import { client } from "./clients.js";

const [count, acks, json] = process.argv.slice(2);

function print(found: object): void {
  console.log(JSON.stringify(found, (_, value: unknown) => (typeof value === "bigint" ? Number(value) : value)));
}

const { channel, ...options } = JSON.parse(json ?? "{}") as SubscribeOptions & { channel?: string };
const messages = client().subscribe(channel ?? [], { ...options, onGap: (gap) => print({ gap }) });
const first = messages.next();
while (messages.position === undefined) {
  await new Promise((resolve) => setTimeout(resolve, 5));
}
print({ position: messages.position });
for (let n = 1, next = first; ; n++, next = messages.next()) {
  const { value } = await next;
  if (value === undefined) {
    break;
  }
  print({ id: value.id, payload: value.payload, missed: value.missed });
  if (n <= Number(acks)) {
    await messages.ack(value);
  }
  if (n === Number(count)) {
    break;
  }
}
await messages.close();
