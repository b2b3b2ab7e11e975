// The ways in which a Connect-ES v2 client may reach the server, by name.
import type { Transport } from "@connectrpc/connect";
import * as node from "@connectrpc/connect-node";
import * as web from "@connectrpc/connect-web";

export const transports: Record<string, (baseUrl: string) => Transport> = {
  // HTTP/1.1
  "connect-1.1": (baseUrl) => node.createConnectTransport({ baseUrl, httpVersion: "1.1" }),
  "connect-1.1-json": (baseUrl) =>
    node.createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  "grpc-web-1.1": (baseUrl) => node.createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
  // What a browser uses. Its Connect transport speaks JSON unless told otherwise.
  "web": (baseUrl) => web.createConnectTransport({ baseUrl }),
  "web-binary": (baseUrl) => web.createConnectTransport({ baseUrl, useBinaryFormat: true }),
  "web-grpc-web": (baseUrl) => web.createGrpcWebTransport({ baseUrl }),
  // HTTP/2
  "connect-2": (baseUrl) => node.createConnectTransport({ baseUrl, httpVersion: "2" }),
  "connect-2-json": (baseUrl) => node.createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: false }),
  "grpc-web-2": (baseUrl) => node.createGrpcWebTransport({ baseUrl, httpVersion: "2" }),
  "grpc-2": (baseUrl) => node.createGrpcTransport({ baseUrl }),
  "grpc-2-json": (baseUrl) => node.createGrpcTransport({ baseUrl, useBinaryFormat: false }),
};
