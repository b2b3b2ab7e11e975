// Readers behind a proxy whose connections are cut after the first message. One message is published while they are
// away; they connect again by themselves. Prints what each received, and how it said what it had.
import { EventSourcePolyfill } from "event-source-polyfill";
import { EventSource } from "eventsource";
import http from "node:http";

const target = new URL(process.argv[2]);
const stream = "/data/-/pubsub/-/stream";

async function publish(channel, payload) {
  const body = JSON.stringify({ channel, payload });
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(`${target.origin}/data/-/pubsub/-/publish`, { method: "POST", headers, body });
  if (!answer.ok) throw new Error(await answer.text());
}

async function read(channel, open) {
  const sockets = new Set();
  const asked = [];
  const proxy = http.createServer((request, response) => {
    asked.push({ url: request.url, header: request.headers["last-event-id"] ?? null });
    const { method, headers } = request;
    const onward = http.request({ host: target.hostname, port: target.port, path: request.url, method, headers }, (found) => {
      response.writeHead(found.statusCode, found.headers);
      found.pipe(response);
    });
    onward.on("error", () => response.destroy());
    response.on("close", () => onward.destroy());
    onward.end();
  });
  proxy.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
  const source = open(`http://127.0.0.1:${proxy.address().port}${stream}?channel=${channel}`);
  const got = [];
  let look = () => {};
  source.onmessage = (event) => {
    got.push(JSON.parse(event.data).payload);
    look();
  };
  const received = (payload) =>
    new Promise((done) => {
      look = () => got.includes(payload) && done();
      look();
    });
  await new Promise((done) => source.addEventListener("ready", done, { once: true }));
  await publish(channel, "one");
  await received("one");
  const back = new Promise((done) => source.addEventListener("ready", done, { once: true }));
  for (const socket of sockets) socket.destroy();
  await publish(channel, "two, while away");
  await back;
  await publish(channel, "three");
  await received("three");
  source.close();
  proxy.closeAllConnections();
  proxy.close();
  return { got, asked };
}

const polyfill = (name) => (url) =>
  new EventSourcePolyfill(url, {
    headers: { "X-Any": "1" },
    ...(name === null ? {} : { lastEventIdQueryParameterName: name }),
  });
const runs = [
  ["polyfill", polyfill(null)],
  ["lastEventID", polyfill("lastEventID")],
  ["Last-Event-ID", polyfill("Last-Event-ID")],
  ["last_event_id", polyfill("last_event_id")],
  ["header", (url) => new EventSource(url)],
];
const found = await Promise.all(runs.map(async ([name, open]) => [name, await read(`c/${name}`, open)]));
console.log(JSON.stringify(Object.fromEntries(found)));
process.exit(0);
