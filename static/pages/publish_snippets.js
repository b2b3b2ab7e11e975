/**
 * The statements that publish the same messages in SQL, with curl and in TypeScript.
 *
 * A pasted statement publishes exactly the channel, the payloads and the key of the
 * form, for any text in them, and every character of the statement is visible. A text
 * that no statement can contain raises an error that names the field.
 *
 * @module pages/publish_snippets
 */

/**
 * @typedef {object} Publish
 * @property {string} channel
 * @property {string[]} payloads one for each message
 * @property {string} [key] the key, if there is one message
 * @property {string} origin scheme, host and port: `http://127.0.0.1:8001`
 * @property {string} root the path of the RPC: Datasette's base_url, without the last slash
 * @property {string} url of the HTTP endpoint
 * @property {string} database
 * @property {boolean} token whether a token is needed
 */

/** The placeholder for a token. */
export const TOKEN = "YOUR_TOKEN";

/** Invisible characters, bidirectional control characters, and control characters of terminals. */
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;
const EVERY_HIDDEN = new RegExp(HIDDEN, "g");

/**
 * Throws a RangeError that names the field, if a text cannot be published.
 * @param {Publish} publish
 */
function check({ channel, payloads, key = "" }) {
  for (const [field, texts] of Object.entries({ channel: [channel], payload: payloads, key: [key] })) {
    for (const text of texts) {
      if (text.includes("\0")) throw new RangeError(`${field} must not contain NUL`);
      try {
        encodeURIComponent(text);
      } catch {
        throw new RangeError(`${field} holds half of a surrogate pair, which is not valid Unicode`);
      }
    }
  }
}

/** A text in SQL, with doubled quotes; `char()` writes hidden characters by their numbers. */
function sqlText(text) {
  const parts = text.split(new RegExp(`(${HIDDEN.source}+)`)).filter((part) => part !== "");
  const written = parts.map((part) =>
    HIDDEN.test(part)
      ? `char(${Array.from(part, (char) => char.codePointAt(0)).join(", ")})`
      : `'${part.replaceAll("'", "''")}'`,
  );
  return written.length ? written.join(" || ") : "''";
}

/** JSON, which is also TypeScript, with hidden characters escaped. */
function jsonText(value, indent = 0) {
  return JSON.stringify(value, null, indent).replace(
    // A line feed here is layout: JSON.stringify has escaped those in texts.
    EVERY_HIDDEN,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** One word for a POSIX shell. */
function shellWord(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The messages in the format of the HTTP endpoint. */
function items({ channel, payloads, key }) {
  return payloads.map((payload) => ({ channel, payload, ...(key ? { key } : {}) }));
}

/** SQL for any program that has the file open: the sqlite3 shell, a trigger, a script. @param {Publish} publish */
export function sql(publish) {
  check(publish);
  const { channel, payloads, key } = publish;
  const rows = payloads.map((payload) => {
    const values = [channel, payload, ...(key ? [key] : [])];
    return `(${values.map(sqlText).join(", ")})`;
  });
  return `INSERT INTO vpubsub (channel, payload${key ? ", key" : ""})\nVALUES ${rows.join(",\n       ")};`;
}

/** A curl command for a POSIX shell. @param {Publish} publish */
export function curl(publish) {
  check(publish);
  const messages = items(publish);
  const body = jsonText(messages.length === 1 ? messages[0] : { items: messages });
  const token = publish.token ? `  -H 'Authorization: Bearer ${TOKEN}' \\\n` : "";
  return `curl ${shellWord(publish.url)} \\\n${token}  -H 'Content-Type: application/json' \\\n  -d ${shellWord(body)}`;
}

/** TypeScript for Connect-ES and the generated code. @param {Publish} publish */
export function typescript(publish) {
  check(publish);
  const options = [`  baseUrl: ${jsonText(publish.origin + publish.root)},`];
  if (publish.token) {
    options.push(
      "  interceptors: [",
      "    (next) => (request) => {",
      `      request.header.set("Authorization", "Bearer ${TOKEN}");`,
      "      return next(request);",
      "    },",
      "  ],",
    );
  }
  const messages = items(publish).map((item) => `    ${jsonText(item)},`);
  return [
    'import { createClient } from "@connectrpc/connect";',
    'import { createConnectTransport } from "@connectrpc/connect-web";',
    'import { DbService } from "./gen/db/v1/db_pb";',
    "",
    "const transport = createConnectTransport({",
    ...options,
    "});",
    "const client = createClient(DbService, transport);",
    "const { messageIds } = await client.publishBatch({",
    `  dbName: ${jsonText(publish.database)},`,
    "  items: [",
    ...messages,
    "  ],",
    "});",
  ].join("\n");
}
