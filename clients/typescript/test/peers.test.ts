// The client against peers that break, are silent, or are something else. Over fetch, and over node's own HTTP.

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { createConnectTransport } from "@connectrpc/connect-node";

import { Client, NotPublished, Refused, Unreachable } from "../src/index.js";
import type { ClientOptions, Gap } from "../src/index.js";
import { Kind } from "../src/gen/db/v1/db_pb.js";
import { answer, message, Peer, published, stream } from "./peer.js";
import { ids, take } from "./take.js";

/** Gives up soon. */
const SOON = 0.3;

const KINDS: Record<string, (url: string, options?: ClientOptions) => Client> = {
  fetch: (url, options) => new Client(url, options),
  node: (url, options) => {
    const transport = createConnectTransport({ baseUrl: new URL(url).origin, httpVersion: "1.1" });
    return new Client({ database: "data", transport }, options);
  },
};

const peers: Peer[] = [];

async function peer(...answers: Buffer[]): Promise<Peer> {
  const found = await Peer.with(answers);
  peers.push(found);
  return found;
}

async function hanging(...answers: Buffer[]): Promise<Peer> {
  const found = await Peer.with(answers, true);
  peers.push(found);
  return found;
}

after(() => {
  for (const each of peers) {
    each.close();
  }
});

const BUSY = answer(
  429,
  "application/json",
  // An ErrorDetail that says to come again after a second.
  JSON.stringify({
    code: "resource_exhausted",
    message: "busy",
    details: [{ type: "db.v1.ErrorDetail", value: "GAE" }],
  }),
);
const TOO_LARGE = answer(
  429,
  "application/json",
  // Its field is payload, its limit max_payload_bytes.
  JSON.stringify({
    code: "resource_exhausted",
    message: "too large",
    details: [{ type: "db.v1.ErrorDetail", value: "CgdwYXlsb2FkEhFtYXhfcGF5bG9hZF9ieXRlcw" }],
  }),
);
const BAD_GATEWAY = answer(502, "text/html", "<p>Bad gateway</p>");
const PROXY_IS_BUSY = answer(429, "text/html", "<p>Slow down</p>");
const LOGIN = answer(200, "text/html", "<p>Log in</p>");
const CUT = Buffer.from("HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\nContent-Length: 100\r\n\r\nx");
const NOTHING = Buffer.alloc(0);

for (const [kind, client] of Object.entries(KINDS)) {
  describe(kind, () => {
    test("silence is the end of a connection", async () => {
      const found = await hanging(stream(message(1)), stream({ kind: Kind.HEARTBEAT, head: 5n }), stream(message(9)));
      const reading = client(found.url).subscribe("a", { silenceSeconds: SOON });
      assert.deepEqual(await ids(reading, 2), [1, 9]);
      const asked = found.asked();
      assert.deepEqual(asked.map((each) => each.lastMessageId), [undefined, 1n, 5n]);
      assert.deepEqual([asked[0]?.channels, asked[0]?.heartbeatSeconds, asked[0]?.status], [["a"], 1, true]);
      await reading.close();
    });

    test("with explicit acks the server keeps the place", async () => {
      const found = await peer(stream(message(1), message(2)), stream(message(2), message(3)));
      const reading = client(found.url).subscribe([], { subscription: "s", ack: "explicit" });
      assert.deepEqual(await ids(reading, 3), [1, 2, 3], "what the program has is left out");
      assert.deepEqual(found.asked().map((each) => each.lastMessageId), [undefined, undefined]);
    });

    test("another log begins anew", async () => {
      const gap = { kind: Kind.GAP, missed: -1n, head: 0n };
      const found = await peer(stream(message(7)), stream(gap, message(1)));
      const gaps: Gap[] = [];
      const reading = client(found.url).subscribe("a", { onGap: (each) => gaps.push(each) });
      const taken = await take(reading, 2);
      assert.deepEqual(taken.map((each) => [each.id, each.missed]), [[7n, 0], [1n, -1]]);
      assert.deepEqual(gaps, [{ missed: -1, resumedAt: 0n }]);
    });

    test("half of a response is none", async () => {
      const half = stream(message(1), message(2)).subarray(0, -4);
      const found = await peer(half, stream(message(2)));
      assert.deepEqual(await ids(client(found.url).subscribe("a"), 2), [1, 2]);
      assert.deepEqual(found.asked().map((each) => each.lastMessageId), [undefined, 1n]);
    });

    test("it gives up when it is told to", async () => {
      const found = await peer(BAD_GATEWAY, PROXY_IS_BUSY, stream(message(1)));
      const reading = client(found.url).subscribe("a", { reconnectSeconds: 1 });
      assert.deepEqual(await ids(reading, 1), [1]);
      await assert.rejects(reading.next(), Unreachable);
      found.close();
      const nobody = client(found.url, { retrySeconds: SOON });
      await assert.rejects(nobody.publish("a", "x", { key: "k" }), Unreachable);
      // No connection was made, so that it was tried again, and is certainly not stored.
      const localhost = client(found.url.replace("127.0.0.1", "localhost"), { retrySeconds: SOON });
      for (const each of [nobody, localhost]) {
        await assert.rejects(each.publish("a", "x"), (error) => {
          assert.ok(error instanceof Unreachable && !(error instanceof NotPublished), String(error));
          return true;
        });
      }
    });

    test("without a key nothing is published twice", async () => {
      for (const broken of [NOTHING, BAD_GATEWAY, CUT]) {
        const found = await peer(broken, published(1234n));
        await assert.rejects(client(found.url).publish("a", "x"), (error) => {
          assert.ok(error instanceof NotPublished, String(error));
          assert.match(error.message, /it is not known whether this was stored/);
          return true;
        });
        assert.equal(found.requests.length, 1);
      }
      for (const busy of [BUSY, PROXY_IS_BUSY]) {
        const found = await peer(busy, published(1234n));
        assert.equal(await client(found.url).publish("a", "x"), 1234n);
      }
      const found = await peer(NOTHING, BAD_GATEWAY, BUSY, CUT, published(1234n));
      assert.equal(await client(found.url).publish("a", "x", { key: "k" }), 1234n);
      assert.equal(found.requests.length, 5);
      assert.equal(new Set(found.requests.map((body) => body.toString("latin1"))).size, 1);
      // One of several without a key is as all without.
      const mixed = await peer(NOTHING, published(1n, 2n));
      const items = [{ channel: "a", payload: "x", key: "k" }, { channel: "a", payload: "y" }];
      await assert.rejects(client(mixed.url).publishMany(items), NotPublished);
    });

    test("over a limit, it does not ask again", async () => {
      const found = await peer(TOO_LARGE);
      await assert.rejects(client(found.url).publish("a", "x", { key: "k" }), (error) => {
        assert.ok(error instanceof Refused, String(error));
        assert.deepEqual([error.field, error.limit], ["payload", "max_payload_bytes"]);
        return true;
      });
    });

    test("a page is not an answer", async () => {
      const said = /something else than datasette-pubsub/;
      const reading = client((await peer(LOGIN)).url).subscribe("a");
      await assert.rejects(reading.next(), (error) => error instanceof Refused && said.test(error.message));
      const publishing = client((await peer(LOGIN)).url).publish("a", "x", { key: "k" });
      await assert.rejects(publishing, (error) => error instanceof Refused && said.test(error.message));
      const missing = client((await peer(answer(404, "text/html", "<p>No</p>"))).url).publish("a", "x", { key: "k" });
      await assert.rejects(missing, (error) => error instanceof Refused && /status 404/.test(error.message));
    });

    test("a signal ends it, and close() does", async () => {
      const found = await hanging(stream(message(1)), stream(message(1)), NOTHING);
      const aborting = new AbortController();
      const reading = client(found.url).subscribe("a", { signal: aborting.signal });
      assert.deepEqual(await ids(reading, 1), [1]);
      const waiting = reading.next();
      aborting.abort(new Error("enough"));
      await assert.rejects(waiting, /enough/);

      const closing = client(found.url).subscribe("a");
      assert.deepEqual(await ids(closing, 1), [1]);
      const next = closing.next();
      await closing.close();
      assert.deepEqual(await next, { done: true, value: undefined });
      assert.deepEqual(await closing.next(), { done: true, value: undefined });

      const tired = AbortSignal.timeout(200);
      const publishing = client(found.url).publish("a", "x", { key: "k", signal: tired });
      await assert.rejects(publishing, { name: "TimeoutError" });
    });

    test("leaving the loop ends the connection", async () => {
      const found = await hanging(stream(message(1), message(2)));
      for await (const each of client(found.url).subscribe("a")) {
        assert.equal(each.id, 1n);
        break;
      }
      await found.left();
    });

    test("an error of the program is not lost", async () => {
      const gap = { kind: Kind.GAP, missed: 1n, head: 3n };
      const onGap = (): void => {
        throw new RangeError("of the program");
      };
      const found = await hanging(stream(gap));
      const reading = client(found.url).subscribe("a", { onGap });
      await assert.rejects(reading.next(), /of the program/);
      await found.left();
    });
  });
}
