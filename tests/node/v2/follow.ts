// Follow one channel with a durable subscription and print what comes, until killed.
//
//   tsx follow.ts <transport> <base URL> <database> <subscription> <channel>
import { createClient } from "@connectrpc/connect";
import { DbService, Kind } from "./gen/db/v1/db_pb";
import { transports } from "./transports";

const [transport, url, dbName, subscriptionName, channel] = process.argv.slice(2);
const client = createClient(DbService, transports[transport](url));
for await (const message of client.subscribe({ dbName, subscriptionName, channel, status: true })) {
  if (message.kind === Kind.READY) console.log(`ready ${message.head}`);
  else console.log(`${message.messageId} ${message.payload}`);
}
