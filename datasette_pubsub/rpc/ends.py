"""What the streams of the service share: the heartbeats that may be asked for, and how a stream ends."""

from __future__ import annotations

from connectrpc.code import Code
from connectrpc.errors import ConnectError

from ..access import gateway
from ..broker.broker import Broker
from ..core.errors import InvalidArgument
from ..core.events import Changed, End, Revoked, Superseded
from ..gen.db_pb2 import ErrorDetail
from .call import Call
from .details import failure

#: The longest interval of heartbeats that a subscriber may ask for, in seconds.
MAX_HEARTBEAT_SECONDS = 3600


def check_heartbeat(seconds: int) -> None:
    """Raise :class:`InvalidArgument` for an interval over the limit."""
    if seconds > MAX_HEARTBEAT_SECONDS:
        raise InvalidArgument(f"heartbeat_seconds is over the limit of {MAX_HEARTBEAT_SECONDS} seconds")


def cut_off(call: Call, broker: Broker, who: str) -> ConnectError:
    """Disconnect a subscriber that has not accepted data; returns the error that ends its call."""
    call.sender.stuck = True
    gateway.cut_off(call.request, broker, who)
    return failure(Code.DEADLINE_EXCEEDED, "the subscriber accepted no data for too long (send_timeout_seconds)")


def ended(end: End | None) -> ConnectError:
    """The error that ends a stream which was stopped for this reason."""
    if isinstance(end, Superseded):
        text = "superseded: a newer connection has taken over this subscription"
        return failure(Code.ABORTED, text, ErrorDetail(ended="superseded"))
    if isinstance(end, Revoked):
        text = "the right to receive these messages has ended or changed"
        return failure(Code.PERMISSION_DENIED, text, ErrorDetail(ended="revoked"))
    if isinstance(end, Changed):
        text = "what the subscription reads was changed; connect again"
        return failure(Code.UNAVAILABLE, text, ErrorDetail(ended="changed"))
    return failure(Code.UNAVAILABLE, "the server is shutting down; connect again", ErrorDetail(ended="shutdown"))
