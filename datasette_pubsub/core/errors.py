"""Every error that a caller may see, with its HTTP status and its Connect code.

The law of this module: an error is defined once, here, and mapped once, by the
protocol that sends it. Messages name the field or the limit and never show a path
or SQL that the caller did not send.
"""

from __future__ import annotations

from typing import Self


class PubsubError(Exception):
    """Base of all errors that are meant to be shown to the caller.

    ``status`` is the HTTP status, ``code`` the Connect code by its protocol
    name (https://connectrpc.com/docs/protocol/#error-codes), ``retry_after``
    how many seconds to wait before trying again, or ``None``. ``field`` is the
    field or parameter that is wrong, and ``limit`` the setting that was
    reached, where the error is about one.
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
        """The same error without where it was raised, which would keep all that was in use there in memory."""
        return type(self)(self.message, field=self.field, limit=self.limit)


class InvalidArgument(PubsubError):
    """The request itself is wrong and will be wrong again."""

    status = 400
    code = "invalid_argument"


class OutOfRange(PubsubError):
    """A message id that the log has never given out."""

    status = 400
    code = "out_of_range"


class NotFound(PubsubError):
    """There is no such database, channel or subscription."""

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
    """The endpoint wants another HTTP method; ``allow`` names those that it answers."""

    status = 405
    code = "unimplemented"
    allow: tuple[str, ...] = ()

    @classmethod
    def instead(cls, *allow: str) -> MethodNotAllowed:
        """The error of an address that answers these methods."""
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
    """A queue or a table of subscribers is full; nothing was stored."""

    status = 429
    code = "resource_exhausted"
    retry_after = 1


class FailedPrecondition(PubsubError):
    """The database cannot take part as it is: immutable, in memory, or with a log that is not ours."""

    status = 409
    code = "failed_precondition"


class Conflict(PubsubError):
    """The channel is not in the state that the publisher expected."""

    status = 409
    code = "aborted"


class Unavailable(PubsubError):
    """The database or the server cannot do it now; trying again later may work."""

    status = 503
    code = "unavailable"
    retry_after = 1


class SchemaConflict(FailedPrecondition):
    """The file holds a table or view with one of our names that is not ours."""
