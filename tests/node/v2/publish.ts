// Publish on one stream, each request after the answer to the one before it, and print the answers as JSON.
//
//   tsx publish.ts <transport> <base URL> <database> <database that is closed to us>
import { type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { DbService, type PublishStreamRequestSchema } from "./gen/db/v1/db_pb";
import { transports } from "./transports";

const [transport, url, dbName, closed] = process.argv.slice(2);
const client = createClient(DbService, transports[transport](url));

type Request = MessageInitShape<typeof PublishStreamRequestSchema>;

/** Requests that are written one by one, while the answers are read. */
function pipe() {
  let give: (request: Request | null) => void;
  let next = new Promise<Request | null>((resolve) => (give = resolve));
  async function* requests() {
    for (let request = await next; request !== null; request = await next) {
      next = new Promise((resolve) => (give = resolve));
      yield request;
    }
  }
  return { requests: requests(), send: (request: Request) => give(request), close: () => give(null) };
}

const { requests, send, close } = pipe();
const answers = client.publishStream(requests)[Symbol.asyncIterator]();
const seen: unknown[] = [];
for (const request of [
  { dbName, items: [{ channel: "a", payload: "one" }, { channel: "b", blob: Uint8Array.of(0, 255) }] },
  { items: [{ channel: "a", payload: "fine" }, { channel: "" }] },
  { dbName: closed, items: [{ channel: "a", payload: "x" }] },
  { items: [{ channel: "a", payload: "x", expectedLastId: 9n }] },
  { items: [{ channel: "secret", payload: "x" }] },
  { items: [] },
  { dbName, items: [{ channel: "a", payload: "last", key: "k" }] },
]) {
  send(request);
  const { value } = await answers.next();
  seen.push([Number(value.request), value.messageIds.map(Number), value.error?.code ?? "", value.error?.message ?? ""]);
}
close();
const ended = (await answers.next()).done;

// Many at once: nothing waits for its answer.
let number = 0;
for await (const answer of client.publishStream(
  (async function* () {
    for (let n = 0; n < 2000; n++) yield { dbName, items: [{ channel: "many", payload: String(n) }] };
  })(),
)) {
  if (Number(answer.request) !== ++number || answer.messageIds.length !== 1) throw new Error("out of order");
}

let refused = "";
try {
  for await (const _ of client.publishStream((async function* () { yield { dbName: closed, items: [] }; })()));
} catch (error) {
  if (!(error instanceof ConnectError)) throw error;
  refused = Code[error.code];
}
process.stdout.write(JSON.stringify({ seen, ended, number, refused }), () => process.exit(0));
