// The client against a real server, which tests/clients/test_typescript_client.py starts. Nobody but ann may publish to
// the channel "closed".

import assert from "node:assert/strict";
import { test } from "node:test";

import { Code } from "@connectrpc/connect";

import { Forbidden, Refused, Superseded } from "../../src/index.js";
import type { Item } from "../../src/index.js";
import { ids, take } from "../take.js";
import { client } from "./clients.js";

const own = client();

/** What ann has to show, if this server knows her. */
const { PUBSUB_TOKEN, PUBSUB_COOKIE } = process.env;

test("what is published arrives", async () => {
  const first = await own.publish("a", "text");
  const payloads = [{ n: 1 }, [1, "zwei"], 7, 1.5, new Uint8Array([0, 255]), "\u2028 line", true, ""];
  const items: Item[] = payloads.map((payload, n) => ({ channel: "a", payload, key: String(n) }));
  const published = await own.publishMany(items);
  assert.deepEqual(published, payloads.map((_, n) => first + BigInt(n) + 1n));
  assert.deepEqual(await own.publishMany(items), published, "each key once");
  assert.deepEqual(await own.publishMany([]), []);
  const reading = own.subscribe("a", { after: first - 1n });
  const found = await take(reading, 9);
  assert.deepEqual(found.map((message) => message.id), [first, ...published]);
  assert.deepEqual(
    found.map((message) => (typeof message.payload === "string" ? message.payload : [...message.payload])),
    ["text", '{"n":1}', '[1,"zwei"]', "7", "1.5", [0, 255], "\u2028 line", "true", ""],
  );
  assert.deepEqual(found[1]?.json(), { n: 1 });
  assert.ok(Math.abs(Number(found[0]?.createdAt) - Date.now()) < 60_000);
  const last = published.at(-1) as bigint;
  assert.equal(await own.publish("a", "live", { expectedLastId: last }), last + 1n);
  assert.deepEqual((await take(reading, 1))[0]?.payload, "live");
  await reading.close();
  const filtered = own.subscribe([], { patterns: ["a*"], filter: "payload = '7'", after: 0 });
  assert.deepEqual((await take(filtered, 1))[0]?.payload, "7");
  await filtered.close();
});

test("acks decide what comes again", async () => {
  const published = await own.publishMany([..."abcde"].map((payload) => ({ channel: "acks", payload })));
  const first = own.subscribe("acks", { subscription: "s", ack: "explicit", start: "earliest" });
  const found = await take(first, 3);
  const cursor = published[1] as bigint;
  assert.equal(await first.ack(found[1] as (typeof found)[0]), cursor);
  assert.equal(await first.ack(published[0] as bigint), cursor);
  await first.close();
  const again = own.subscribe([], { subscription: "s", ack: "explicit" });
  assert.deepEqual(await ids(again, 3), published.slice(2).map(Number));
  assert.equal(await own.ack("s", published[4] as bigint), published[4]);
  // A newer subscriber takes over, and the older one must not come back.
  const newer = own.subscribe([], { subscription: "s", ack: "explicit" });
  const next = await own.publish("acks", "next");
  assert.deepEqual(await ids(newer, 1), [Number(next)]);
  await assert.rejects(take(again, 2), Superseded);
  await newer.close();
});

test("what is refused is told and not repeated", async () => {
  const nobody = client({ retrySeconds: 1000 });
  await assert.rejects(nobody.publish("closed", "x", { key: "1" }), (error) => {
    assert.ok(error instanceof Forbidden && error.code === Code.PermissionDenied, String(error));
    return true;
  });
  if (PUBSUB_TOKEN !== undefined && PUBSUB_COOKIE !== undefined) {
    assert.ok((await client({ token: PUBSUB_TOKEN }).publish("closed", "x")) > 0n);
    assert.ok((await client({ headers: { Cookie: PUBSUB_COOKIE } }).publish("closed", "x")) > 0n);
  }
  const refused: [() => Promise<unknown>, Code, RegExp, string | undefined, string | undefined][] = [
    [() => own.publish("x".repeat(300), "x"), Code.InvalidArgument, /channel/, "channel", undefined],
    [
      () => own.publish("a", "x", { expectedLastId: 7_000_000 }),
      Code.Aborted,
      /expected_last_id is 7000000/,
      undefined,
      undefined,
    ],
    [
      () => own.publish("a", "x".repeat(1024 * 1024 + 1), { key: "large" }),
      Code.ResourceExhausted,
      /max_payload_bytes/,
      "payload",
      "max_payload_bytes",
    ],
    [() => nobody.subscribe("a", { filter: "SELECT 1" }).next(), Code.InvalidArgument, /filter/, "filter", undefined],
    [() => client({}, "nothing").subscribe("a").next(), Code.NotFound, /nothing/, undefined, undefined],
    [() => nobody.ack("nobody's", 1), Code.NotFound, /subscription not found/, undefined, undefined],
  ];
  for (const [call, code, said, field, limit] of refused) {
    await assert.rejects(call(), (error) => {
      assert.ok(error instanceof Refused, String(error));
      assert.match(error.message, said);
      assert.deepEqual([error.code, error.field, error.limit], [code, field, limit], error.message);
      return true;
    });
  }
});

test("where a subscriber begins", async () => {
  const published = await own.publishMany([..."abc"].map((payload) => ({ channel: "begins", payload })));
  const [a, b, c] = published.map(Number);
  const last = own.subscribe("begins", { start: "last" });
  assert.deepEqual(await ids(last, 1), [c]);
  await last.close();
  const since = own.subscribe("begins", { since: new Date(Date.now() - 60_000) });
  assert.deepEqual(await ids(since, 3), [a, b, c]);
  await since.close();
  const latest = own.subscribe("begins");
  const next = latest.next();
  while (latest.position === undefined) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const live = await own.publish("begins", "live");
  assert.equal((await next).value?.id, live);
  await latest.close();
});
