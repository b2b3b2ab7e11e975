// Values: addresses, payloads, waits.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, Message } from "../src/index.js";
import { Attempts } from "../src/attempts.js";
import { itemInit } from "../src/items.js";
import { databaseOf } from "../src/place.js";
import { sleep } from "../src/waiting.js";

test("an address is that of a database's page", () => {
  const found: [string, string, string][] = [
    ["http://127.0.0.1:8001/data", "http://127.0.0.1:8001", "data"],
    ["https://example.com/prefix/data/?x=1#y", "https://example.com/prefix", "data"],
    ["http://[::1]:8001/a+b~2Ec~2F~C3~BC~7E~25~2B-_", "http://[::1]:8001", "a b.c/ü~%+-_"],
  ];
  for (const [address, baseUrl, database] of found) {
    assert.deepEqual(databaseOf(address), { baseUrl, database });
    assert.equal(new Client(new URL(address)).database, database);
  }
  for (const address of ["data.db", "http://127.0.0.1:8001", "http://127.0.0.1:8001/", "ftp://x/data", "http://x/~ZZ"]) {
    assert.throws(() => new Client(address), /is not the address of a database/, address);
  }
});

test("payloads become text or bytes", () => {
  const bytes = new Uint8Array([0, 255]);
  const texts: [unknown, string][] = [
    ["text", "text"],
    ["", ""],
    [{ n: 1, s: "ü" }, '{"n":1,"s":"ü"}'],
    [[1, "zwei", null], '[1,"zwei",null]'],
    [7, "7"],
    [1.5, "1.5"],
    [2n ** 60n, "1152921504606846976"],
    [true, "true"],
  ];
  for (const [payload, text] of texts) {
    assert.deepEqual(itemInit({ channel: "a", payload: payload as string }), { channel: "a", payload: text });
  }
  assert.deepEqual(itemInit({ channel: "a", payload: bytes, key: "k", expectedLastId: 7 }), {
    channel: "a",
    blob: bytes,
    key: "k",
    expectedLastId: 7n,
  });
  for (const payload of [null, undefined, NaN, Infinity, () => 1, Symbol("x")]) {
    const item = { channel: "a", payload: payload as unknown as string };
    assert.throws(() => itemInit(item), /a payload is text, a finite number, bytes/, String(payload));
  }
});

test("a message's payload as JSON", () => {
  const at = new Date();
  assert.deepEqual(new Message(1n, "a", '{"n":1}', at).json(), { n: 1 });
  assert.deepEqual(new Message(1n, "a", new TextEncoder().encode("[1]"), at).json(), [1]);
  assert.throws(() => new Message(1n, "a", "x", at).json(), SyntaxError);
});

test("waits grow, are not alike, and end", () => {
  const attempts = new Attempts(true, 1000, 0);
  const failure = { reason: "x", reached: true, retryAfterMs: 0, shutdown: false };
  const waits = Array.from({ length: 40 }, () => attempts.failed(failure, 0));
  waits.forEach((wait, n) => {
    const most = Math.min(5000, 100 * 2 ** n);
    assert.ok(wait >= most / 2 && wait <= most, `${n}: ${wait}`);
  });
  assert.throws(() => attempts.failed(failure, 1_000_000), /x/);
  assert.equal(new Attempts(true, 1000, 0).failed({ ...failure, retryAfterMs: 3000 }, 0), 3000);
  assert.equal(new Attempts(true, 1000, 0).failed({ ...failure, retryAfterMs: 1e9 }, 0), 5000);
});

test("a wait ends with its signal", async () => {
  const aborting = new AbortController();
  const waiting = sleep(60_000, aborting.signal);
  aborting.abort(new Error("enough"));
  await assert.rejects(waiting, /enough/);
  await assert.rejects(sleep(1, aborting.signal), /enough/);
});

test("what subscribe() needs", () => {
  const client = new Client("http://127.0.0.1:8001/data");
  assert.throws(() => client.subscribe([]), /takes channels, patterns or the name/);
  assert.throws(() => client.subscribe("a").ack(1n), /only a subscription has acks/);
});
