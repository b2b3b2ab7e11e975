"""Prints the tables of metrics, spans and attributes for cog, which puts them into docs/monitoring.md."""

from __future__ import annotations

from datasette.telemetry_registry import COUNTER, MetricName

from datasette_pubsub.telemetry.registry import METRICS, SPANS


def prometheus(metric: MetricName) -> str:
    """The name that OpenTelemetry's exporter for Prometheus makes of a metric: units and counters are suffixes."""
    unit = "_seconds" if metric.unit == "s" else ""
    return metric.replace(".", "_") + unit + ("_total" if metric.kind == COUNTER else "")


def metrics() -> None:
    """Print the table of metrics."""
    print("| metric | kind | in Prometheus | meaning |\n|---|---|---|---|")
    for metric in METRICS:
        kind = metric.kind.removeprefix("Observable ").lower()
        more = [f"`{each}`" for each in metric.attributes if each.startswith("datasette_pubsub.")]
        meaning = metric.description + (f" Attributes: {', '.join(more)}." if more else "")
        print(f"| `{metric}` | {kind} | `{prometheus(metric)}` | {meaning} |")


def spans() -> None:
    """Print the table of spans."""
    print("| span | kind | meaning |\n|---|---|---|")
    for span in SPANS:
        print(f"| `{span}` | {span.kind.name.lower()} | {span.description} |")


def attributes() -> None:
    """Print the table of attributes, of metrics and spans together."""
    print("| attribute | meaning |\n|---|---|")
    seen: dict[str, str] = {}
    for entry in (*METRICS, *SPANS):
        for attribute in entry.attributes:
            seen.setdefault(str(attribute), attribute.description.replace("``", "`"))
    for name, meaning in seen.items():
        print(f"| `{name}` | {meaning} |")
