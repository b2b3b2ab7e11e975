// A client of a real server, over the transport that the tests are run for.

import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";

import { Client } from "../../src/index.js";
import type { ClientOptions } from "../../src/index.js";

const TRANSPORTS = {
  "node-1.1": (baseUrl: string) => createConnectTransport({ baseUrl, httpVersion: "1.1" }),
  "node-1.1-json": (baseUrl: string) => createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  "grpc-web": (baseUrl: string) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
  "node-2": (baseUrl: string) => createConnectTransport({ baseUrl, httpVersion: "2" }),
  grpc: (baseUrl: string) => createGrpcTransport({ baseUrl }),
};

/** The address of the database. */
export const url = process.env["PUBSUB_URL"] ?? "http://127.0.0.1:8001/data";

const transport = process.env["PUBSUB_TRANSPORT"] ?? "address";

export function client(options?: ClientOptions, database = "data"): Client {
  if (transport === "address") {
    return new Client(new URL(database, url), options);
  }
  const make = TRANSPORTS[transport as keyof typeof TRANSPORTS];
  return new Client({ database, transport: make(new URL(url).origin) }, options);
}
