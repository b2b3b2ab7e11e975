"""The spans: of publishes in traced requests, of the commits that hold them, and of the openings and ends of streams.

Whether a request is traced is asked first, of the current span: without a provider, or when the trace was not sampled,
a publish costs 0.5 µs more and nothing is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from . import registry
from .metrics import of_database
from .registry import (
    BATCH,
    COMMIT,
    DELIVERED,
    DURABLE,
    END,
    ERROR_TYPE,
    KIND,
    OPERATION,
    OPERATION_TYPE,
    PUBLISH,
    PUBLISHES,
    REASON,
    SUBSCRIBE,
)

tracer = trace.get_tracer(registry.SCOPE, version("datasette-pubsub"), schema_url=registry.SCHEMA_URL)


def traced() -> bool:
    """Whether spans are made now: a request is traced, and was sampled."""
    return trace.get_current_span().is_recording()


def cause() -> SpanContext | None:
    """The current span, for a later link; ``None`` if nothing is traced."""
    span = trace.get_current_span()
    return span.get_span_context() if span.is_recording() else None


@contextmanager
def _failing(span: trace.Span) -> Iterator[None]:
    """Note the class of an error on the span; its text may tell what the caller sent, and is left out."""
    try:
        yield
    except Exception as error:
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute(ERROR_TYPE, type(error).__name__)
        raise


@contextmanager
def publishing(database: str, messages: int) -> Iterator[None]:
    """The span of one publish, current in the block."""
    named = {**of_database(database), OPERATION: str(PUBLISH), OPERATION_TYPE: "send"}
    with (
        tracer.start_as_current_span(
            PUBLISH,
            kind=PUBLISH.kind,
            attributes={**named, BATCH: messages},
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        _failing(span),
    ):
        yield


def committed(
    database: str,
    causes: Sequence[SpanContext],
    *,
    messages: int,
    publishes: int,
    seconds: float,
    ago: float,
    error: Exception | None,
) -> None:
    """The span of a commit that ended ``ago`` seconds before now and took ``seconds``, for these publishes."""
    end = time.time_ns() - int(ago * 1e9)
    span = tracer.start_span(
        COMMIT,
        context=Context(),
        links=[Link(context) for context in causes],
        attributes={**of_database(database), OPERATION: str(COMMIT), BATCH: messages, PUBLISHES: publishes},
        start_time=end - int(seconds * 1e9),
    )
    if error is not None:
        span.set_status(Status(StatusCode.ERROR))
        span.set_attribute(ERROR_TYPE, type(error).__name__)
    span.end(end_time=end)


class Opening:
    """The opening of one stream, as a span; and its end, as another."""

    __slots__ = ("_attributes", "_span")

    def __init__(self, attributes: dict[str, str], span: trace.Span) -> None:
        self._attributes = attributes
        self._span = span

    def opened(self) -> None:
        """The stream is open."""
        self._span.end()

    def failed(self, error: BaseException) -> None:
        """The stream could not be opened."""
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attribute(ERROR_TYPE, type(error).__name__)
        self._span.end()

    def ended(self, reason: str, delivered: int | None) -> None:
        """The opened stream has ended. ``delivered`` counts its messages, if it is a subscriber's."""
        counted = {} if delivered is None else {str(DELIVERED): delivered}
        tracer.start_span(
            END,
            context=Context(),
            links=[Link(self._span.get_span_context())],
            attributes={**self._attributes, **counted, OPERATION: str(END), REASON: reason},
        ).end()


def opening(database: str, kind: str, named: bool) -> Opening | None:
    """The opening of a stream begins; ``None`` if nothing is traced."""
    if not traced():
        return None
    attributes = {**of_database(database), KIND: kind}
    span = tracer.start_span(SUBSCRIBE, attributes={**attributes, OPERATION: str(SUBSCRIBE), DURABLE: named})
    return Opening(attributes, span)
