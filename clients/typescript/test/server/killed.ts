// Publish with keys and subscribe with explicit acks, while the server is killed now and then; until standard input ends.
// Prints what the publisher was told and what the subscriber got.

import { setTimeout as wait } from "node:timers/promises";

import { client } from "./clients.js";

const publisher = client({ retrySeconds: 120 });
const subscriber = client({ retrySeconds: 120 });
const told: bigint[] = [];
const found: { id: bigint; number: number }[] = [];
let ended = false;
process.stdin.on("end", () => (ended = true)).resume();

async function publish(): Promise<void> {
  while (!ended) {
    const number = told.length;
    told.push(await publisher.publish("a", { number }, { key: `key-${number}` }));
    await wait(5);
  }
  // One more, so that the reader sees that it is the end.
  await publisher.publish("a", { number: -1 }, { key: "last" });
}

async function read(): Promise<void> {
  const messages = subscriber.subscribe("a", { subscription: "s", ack: "explicit", start: "earliest" });
  for await (const message of messages) {
    const { number } = message.json() as { number: number };
    if (number === -1) {
      await messages.ack(message);
      break;
    }
    found.push({ id: message.id, number });
    if (found.length % 10 === 0) {
      await messages.ack(message);
    }
  }
}

await Promise.all([publish(), read()]);
console.log(
  JSON.stringify({
    told: told.map(Number),
    ids: found.map((each) => Number(each.id)),
    numbers: found.map((each) => each.number),
  }),
);
