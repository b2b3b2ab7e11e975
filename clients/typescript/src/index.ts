// A client of datasette-pubsub: publish to a server, and subscribe to it over every loss of the connection.

export { Client } from "./client.js";
export type { ClientOptions, Place, PublishOptions, SubscribeOptions } from "./client.js";
export { Subscriber } from "./subscriber.js";
export {
  ClientError,
  Forbidden,
  Message,
  NotPublished,
  Refused,
  Superseded,
  Unreachable,
} from "./values.js";
export type { Gap, Item, Payload } from "./values.js";
