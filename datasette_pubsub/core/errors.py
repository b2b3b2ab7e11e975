"""Every error that a client may see, with its HTTP status and its Connect code.

Each protocol maps these errors to its own format in one place. A message names the field or the limit, and never
contains a path, or SQL that the client did not send.
"""

from __future__ import annotations

from typing import Self


class PubsubError(Exception):
    """Base class of all errors that a client may see.

    ``status`` is the HTTP status, ``code`` the Connect code by its protocol
    name (https://connectrpc.com/docs/protocol/#error-codes), ``retry_after``
    how many seconds to wait before trying again, or ``None``. ``field`` is the
    field or parameter that is wrong, and ``limit`` the setting that was
    reached, if the error is about one.

    >>> from datasette_pubsub.core.errors import PayloadTooLarge, PubsubError
    >>> try:
    ...     raise PayloadTooLarge("payload has 3 bytes; the limit is 2 bytes", field="payload")
    ... except PubsubError as error:
    ...     print(error.status, error.code, error.field, error.message)
    413 resource_exhausted payload payload has 3 bytes; the limit is 2 bytes
    """

    status = 500
    code = "internal"
    retry_after: int | None = None

    def __init__(self, message: str, *, field: str | None = None, limit: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.limit = limit

    def bare(self) -> Self:
        """A copy without the traceback, whose frames would keep all their local variables in memory."""
        return type(self)(self.message, field=self.field, limit=self.limit)


class InvalidArgument(PubsubError):
    """The request is wrong; sending it again gives the same error."""

    status = 400
    code = "invalid_argument"


class OutOfRange(PubsubError):
    """A message id that the log has never given out."""

    status = 400
    code = "out_of_range"


class NotFound(PubsubError):
    """The database, channel or subscription does not exist."""

    status = 404
    code = "not_found"


class PermissionDenied(PubsubError):
    """The actor may not do this."""

    status = 403
    code = "permission_denied"


class UnsupportedMediaType(PubsubError):
    """The body is not in a format that this endpoint reads."""

    status = 415
    code = "invalid_argument"


class MethodNotAllowed(PubsubError):
    """The endpoint does not answer this HTTP method; ``allow`` names those that it does.

    >>> from datasette_pubsub.core.errors import MethodNotAllowed
    >>> MethodNotAllowed.instead("GET", "HEAD").message
    'this address is used with GET'
    """

    status = 405
    code = "unimplemented"
    allow: tuple[str, ...] = ()

    @classmethod
    def instead(cls, *allow: str) -> MethodNotAllowed:
        """The error for an address that answers these methods."""
        error = cls(f"this address is used with {' and '.join(method for method in allow if method != 'HEAD')}")
        error.allow = allow
        return error


class PayloadTooLarge(PubsubError):
    """A payload, a batch or a request body is over its limit."""

    status = 413
    code = "resource_exhausted"


class RequestTimeout(PubsubError):
    """The request's body did not arrive in time."""

    status = 408
    code = "deadline_exceeded"


class TooManyRequests(PubsubError):
    """The batcher's queue is full, or a limit on streams is reached; nothing was stored."""

    status = 429
    code = "resource_exhausted"
    retry_after = 1


class FailedPrecondition(PubsubError):
    """The database cannot store this: it is immutable, in memory, a follower, or has a conflicting table."""

    status = 409
    code = "failed_precondition"


class Conflict(PubsubError):
    """The channel is not in the state that the publisher expected."""

    status = 409
    code = "aborted"


class Unavailable(PubsubError):
    """The database or the server is temporarily unavailable; trying again later may work."""

    status = 503
    code = "unavailable"
    retry_after = 1


class SchemaConflict(FailedPrecondition):
    """The file has a table or view with one of the plugin's names that the plugin did not make."""
