// Do everything that a client can do, over one transport, and print what was seen as JSON.
//
//   tsx client.ts <transport> <base URL> <database> <database that is closed to us>
//
// Nothing is judged here: tests/clients/test_node_clients.py compares the report with what must be.
import { createHash } from "node:crypto";
import { type MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { AckMode, DbService, Kind, Start, type SubscribeRequestSchema, type SubscribeResponse } from "./gen/db/v1/db_pb";
import { transports } from "./transports";

const [transport, url, dbName, closed] = process.argv.slice(2);
const client = createClient(DbService, transports[transport](url));
const report: Record<string, unknown> = {};

type Request = MessageInitShape<typeof SubscribeRequestSchema>;

function seen(message: SubscribeResponse) {
  return {
    id: message.messageId.toString(),
    channel: message.channel,
    payload: message.payload,
    blob: Buffer.from(message.blob).toString("base64"),
    createdAt: message.createdAt ? timestampDate(message.createdAt).toISOString() : null,
  };
}

/** Everything that is there for this subscriber: all messages up to READY. */
async function backlog(request: Request) {
  const found: SubscribeResponse[] = [];
  for await (const message of client.subscribe({ dbName, ...request, status: true })) {
    if (message.kind === Kind.READY) break;
    found.push(message);
  }
  return found;
}

async function ids(request: Request) {
  return (await backlog(request)).map((message) => message.messageId.toString());
}

async function publish(...items: { channel: string; payload?: string; blob?: Uint8Array; key?: string }[]) {
  return (await client.publishBatch({ dbName, items })).messageIds;
}

async function failure(work: () => Promise<unknown>) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    return { code: Code[error.code], message: error.rawMessage };
  }
  return { code: "none", message: "" };
}

/** Wait for an event of this kind on a stream that is being read. */
async function next(stream: AsyncIterator<SubscribeResponse>, kind: Kind) {
  for (;;) {
    const { done, value } = await stream.next();
    if (done) throw new Error("the stream ended");
    if (value.kind === kind) return value as SubscribeResponse;
  }
}

async function first(request: Request) {
  for await (const message of client.subscribe({ dbName, ...request })) return message.messageId.toString();
}

/** Silence is told of, to those who ask; this goes on beside the rest. */
const heartbeat = (async () => {
  const stream = client.subscribe({ dbName, channel: "silent", heartbeatSeconds: 1 })[Symbol.asyncIterator]();
  const { value } = await stream.next();
  await stream.return?.();
  return Kind[value.kind];
})();

// Publishing: ids in the order of the items; a key that is known adds nothing.
const unicode = "grüße, 日本語, 😀, \u2028 \u0000 \"quoted\" \\ \r\n end";
const bytes = Uint8Array.from({ length: 256 }, (_, n) => n);
const published = await publish(
  { channel: "a", payload: "one" },
  { channel: "a", payload: unicode },
  { channel: "b", blob: bytes },
  { channel: "c.x", payload: '{"n": 1}', key: "k" },
  { channel: "ü 😀", payload: "" },
);
report.published = published.map(String);
report.idType = typeof published[0];
report.again = (await publish({ channel: "c.x", payload: "other", key: "k" })).map(String);

// Reading: channels, patterns, and where an unnamed subscriber begins.
const all = await backlog({ patterns: ["*"], after: published[0] - 1n });
report.all = all.map(seen);
report.channels = await ids({ channel: "a", channels: ["b"], patterns: ["c.*"], after: published[0] - 1n });
report.pattern = await ids({ patterns: ["?"], start: Start.EARLIEST });
report.after = await ids({ patterns: ["*"], after: published[2] });
report.since = await ids({ channel: "a", since: timestampFromDate(timestampDate(all[0].createdAt!)) });
report.sinceLater = await ids({ channel: "a", since: timestampFromDate(new Date(Date.now() + 3_600_000)) });
report.earliest = await ids({ channel: "b", start: Start.EARLIEST });
report.latest = await ids({ channel: "b", start: Start.LATEST });
report.unnamed = await ids({ channel: "b" });
report.lastMessageId = await ids({ channel: "a", start: Start.LATEST, lastMessageId: published[0] });

// A live subscriber without a name gets what is published from now on.
const live = client.subscribe({ dbName, channel: "a", status: true })[Symbol.asyncIterator]();
report.head = (await next(live, Kind.READY)).head.toString();
const [liveId] = await publish({ channel: "a", payload: "live" });
report.live = [liveId.toString(), (await next(live, Kind.MESSAGE)).messageId.toString()];
await live.return?.();

// A durable subscription with an automatic cursor does not get a message twice.
const once = { subscriptionName: "automatic", channel: "b" };
report.automatic = [await first(once), await ids(once)];

// One that acknowledges gets what it has not acknowledged again, also by the channels it was made with.
const work = { subscriptionName: "explicit", channel: "a", ackMode: AckMode.EXPLICIT };
report.explicit = [await ids(work), await ids(work)];
report.acked = (await client.ack({ dbName, subscriptionName: "explicit", messageId: published[0] })).cursor.toString();
report.afterAck = await ids({ subscriptionName: "explicit", ackMode: AckMode.EXPLICIT });
await client.ack({ dbName, subscriptionName: "explicit", messageId: liveId });
report.ackBack = (
  await client.ack({ dbName, subscriptionName: "explicit", messageId: published[0] })
).cursor.toString();
report.afterAll = await ids(work);

// A newer connection takes a subscription over.
const named = { dbName, subscriptionName: "taken", channel: "t", status: true };
const older = client.subscribe(named)[Symbol.asyncIterator]();
await next(older, Kind.READY);
const newer = client.subscribe(named)[Symbol.asyncIterator]();
await next(newer, Kind.READY);
report.superseded = await failure(() => next(older, Kind.MESSAGE));
const [takenId] = await publish({ channel: "t", payload: "for the newer" });
report.taken = [takenId.toString(), (await next(newer, Kind.MESSAGE)).messageId.toString()];
await newer.return?.();

// Big messages.
const text = "x".repeat(1024 * 1024 - 9) + "é€😀";
const blob = Uint8Array.from({ length: 1024 * 1024 }, (_, n) => (n * 7919) >> 3);
const big = await publish({ channel: "big", payload: text }, { channel: "big", blob });
report.big = (await backlog({ channel: "big", after: big[0] - 1n })).map((message) => ({
  payload: createHash("sha256").update(message.payload).digest("hex"),
  blob: createHash("sha256").update(message.blob).digest("hex"),
}));

// Errors.
const item = { channel: "a", payload: "x" };
const errors: Record<string, unknown> = {};
report.errors = errors;
errors.publishUnknown = await failure(() => client.publishBatch({ dbName: "nowhere", items: [item] }));
errors.subscribeUnknown = await failure(() => backlog({ dbName: "nowhere", channel: "a" }));
errors.ackUnknown = await failure(() => client.ack({ dbName: "nowhere", subscriptionName: "s", messageId: 1n }));
errors.ackUnknownSubscription = await failure(() =>
  client.ack({ dbName, subscriptionName: "never made", messageId: 1n }),
);
errors.ackTooFar = await failure(() =>
  client.ack({ dbName, subscriptionName: "explicit", messageId: big[1] + 1n }),
);
errors.publishEmptyChannel = await failure(() => publish({ channel: "", payload: "x" }));
errors.publishBoth = await failure(() => publish({ channel: "a", payload: "x", blob: bytes }));
errors.publishTooLarge = await failure(() => publish({ channel: "a", payload: text + "x" }));
errors.subscribeNoChannel = await failure(() => backlog({}));
errors.subscribeTooMany = await failure(() =>
  backlog({ channels: Array.from({ length: 101 }, (_, n) => `channel-${n}`) }),
);
errors.publishClosed = await failure(() => client.publishBatch({ dbName: closed, items: [item] }));
errors.subscribeClosed = await failure(() => backlog({ dbName: closed, channel: "a" }));
errors.timeout = await failure(async () => {
  for await (const _ of client.subscribe({ dbName, channel: "silent" }, { timeoutMs: 300 }));
});
const controller = new AbortController();
errors.canceled = await failure(async () => {
  const stream = client.subscribe({ dbName, channel: "a", status: true }, { signal: controller.signal });
  for await (const _ of stream) controller.abort();
});

report.heartbeat = await heartbeat;
process.stdout.write(JSON.stringify(report), () => process.exit(0));
