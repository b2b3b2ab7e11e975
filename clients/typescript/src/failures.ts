// What a failed call means: whether the server has refused it, may have done it, or has certainly not begun.
//
// An error of the service has a detail. Without it, the error comes from something in between, or the connection broke.
// Then what Connect-ES says of it is all there is: it has no documented way to tell a broken connection from an answer.

import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorDetailSchema } from "./gen/db/v1/db_pb.js";
import { Forbidden, Refused, Superseded } from "./values.js";

/** A failure that may pass. */
export interface Passing {
  readonly reason: string;
  /** Whether the server may have done what it was asked. */
  readonly reached: boolean;
  /** How long the server asks to wait, in milliseconds. */
  readonly retryAfterMs: number;
  /** Whether the server has said that it shuts down. */
  readonly shutdown: boolean;
}

/** HTTP statuses after which the same request may succeed. */
const PASSING_STATUSES = new Set([408, 425, 429, 500, 502, 503, 504]);

/** Codes of the service after which the same request may succeed. */
const PASSING_CODES = new Set([Code.Canceled, Code.Unknown, Code.DeadlineExceeded, Code.Internal, Code.Unavailable]);

/** Codes of a connection that broke, or of an answer that is cut off. */
const BROKEN_CODES = new Set([
  ...PASSING_CODES,
  Code.Aborted,
  Code.DataLoss,
  Code.InvalidArgument,
  Code.ResourceExhausted,
]);

/** What a call's error means: a failure that may pass. Throws `Refused`, `Forbidden` or `Superseded` if it cannot. */
export function passing(error: unknown): Passing {
  const found = ConnectError.from(error);
  const detail = found.findDetails(ErrorDetailSchema)[0];
  if (detail === undefined) {
    return withoutDetail(found, error);
  }
  if (detail.ended === "superseded") {
    throw new Superseded(found.rawMessage, { cause: error });
  }
  // The server had too much to do to begin; over a limit of size it asks nobody to come again.
  const busy = found.code === Code.ResourceExhausted && detail.retryAfterSeconds > 0;
  if (busy || PASSING_CODES.has(found.code) || detail.ended !== "") {
    const retryAfterMs = detail.retryAfterSeconds * 1000;
    return { reason: found.rawMessage, reached: !busy, retryAfterMs, shutdown: detail.ended === "shutdown" };
  }
  throw refusal(found, found.rawMessage, detail.field, detail.limit);
}

function withoutDetail(found: ConnectError, error: unknown): Passing {
  if (found.rawMessage.startsWith("unsupported content type")) {
    // A page of a proxy, or a login.
    throw refusal(found, `the address answers with something else than datasette-pubsub does: ${found.rawMessage}`);
  }
  const status = /^HTTP (\d{3})$/.exec(found.rawMessage)?.[1];
  if (status !== undefined ? !PASSING_STATUSES.has(Number(status)) : !BROKEN_CODES.has(found.code)) {
    throw refusal(found, status === undefined ? found.rawMessage : `the server answered with status ${status}`);
  }
  const reached = status !== "429" && !isNotReached(error);
  return { reason: reasonOf(found), reached, retryAfterMs: 0, shutdown: false };
}

function refusal(error: ConnectError, text: string, field = "", limit = ""): Refused {
  const forbidden = error.code === Code.PermissionDenied || error.code === Code.Unauthenticated;
  const kind = forbidden ? Forbidden : Refused;
  return new kind(text, error.code, field || undefined, limit || undefined, { cause: error });
}

/** Whether no connection was made. A browser does not tell, so there it is never known. */
function isNotReached(error: unknown): boolean {
  if (!(error instanceof Error)) {
    return false;
  }
  // node tries all addresses of a name, and may have an error for each.
  if (error instanceof AggregateError) {
    return error.errors.length > 0 && error.errors.every(isNotReached);
  }
  const { code, syscall } = error as { code?: unknown; syscall?: unknown };
  if (syscall === "connect" || syscall === "getaddrinfo" || code === "UND_ERR_CONNECT_TIMEOUT") {
    return true;
  }
  return error.cause !== undefined && error.cause !== error && isNotReached(error.cause);
}

/** Why a call failed, for people: the innermost text says most. */
function reasonOf(error: Error): string {
  const inner = error.cause instanceof Error && error.cause !== error ? reasonOf(error.cause) : "";
  return inner || (error instanceof ConnectError ? error.rawMessage : error.message) || error.name;
}
