// Items as the service takes them.

import type { MessageInitShape } from "@bufbuild/protobuf";

import type { PublishItemSchema } from "./gen/db/v1/db_pb.js";
import type { Item, Payload } from "./values.js";

/** The item as the service takes it. Throws a `TypeError` for a payload that has no text. */
export function itemInit(item: Item): MessageInitShape<typeof PublishItemSchema> {
  const { channel, payload, key, expectedLastId } = item;
  return {
    channel,
    ...(payload instanceof Uint8Array ? { blob: payload } : { payload: textOf(payload) }),
    ...(key === undefined ? {} : { key }),
    ...(expectedLastId === undefined ? {} : { expectedLastId: BigInt(expectedLastId) }),
  };
}

function textOf(payload: Exclude<Payload, Uint8Array>): string {
  if (typeof payload === "string") {
    return payload;
  }
  if (typeof payload === "bigint") {
    return payload.toString();
  }
  const isNumber = typeof payload !== "number" || Number.isFinite(payload);
  // JSON has no text for undefined and functions, and would write null for NaN.
  const text = isNumber && payload !== null ? (JSON.stringify(payload) as string | undefined) : undefined;
  if (text === undefined) {
    throw new TypeError(`a payload is text, a finite number, bytes, or what JSON can hold, and not ${String(payload)}`);
  }
  return text;
}
