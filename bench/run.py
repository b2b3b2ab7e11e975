#!/usr/bin/env python3
"""Measure everything on docs/performance.md, and write that page. See README.md.

The command writes the results of each part to the results file as soon as the
part is done. ``--resume`` skips parts that the file contains; PART measures one.
``--short`` measures what says most, in five minutes, and writes no page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measures
import report
from direct import direct_send
from filtered import filtered
from heap import freeze_heap
from live import live_queries
from measures import Sizes, make_programs
from mixed import mixed
from relay import relay
from server import HERE, Server, environment, raise_open_files, remove_database

RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "performance.md"

PARTS = {
    **measures.PARTS,
    "direct_send": direct_send,
    "freeze_heap": freeze_heap,
    "filtered": filtered,
    "live_queries": live_queries,
    "mixed": mixed,
    "relay": relay,
}

#: The parts of the comparison with the peers: the arguments of bench.py.
PEER_PARTS = {
    "peers_publish": ["publish", "--peers", "redis", "--formats", "raw", "--empty-route", "/-/empty"],
    "peers_pipeline": ["pipeline", "--peers", "redis", "--formats", "raw"],
    "peers_latency": ["latency", "--peers", "redis", "--formats", "raw"],
    "peers_fanout": [
        "fanout",
        *("--peers", "redis-pubsub,nats,nats-core,nchan"),
        *("--formats", "raw,connect,connect-proto"),
    ],
}

#: What ``--short`` measures: nothing in it depends on the sizes.
SHORT_PARTS = ["other_process", "peers_publish", "peers_pipeline", "peers_latency", "peers_fanout"]

SHORT = Sizes(repeats=3, commits=150, idle_seconds=2.0)

TINY = Sizes(
    repeats=1,
    rows=2_000,
    commits=3,
    idle_seconds=0.1,
    idle_subscribers=12,
    channels=30,
    subscriptions=12,
    log=4_000,
    small_log=1_000,
    direct_subscribers=10,
    direct_messages=5,
    live_subscribers=8,
    live_queries=4,
    live_pages=3,
    filtered_subscribers=5,
    filtered_messages=300,
    filtered_repeats=1,
    relayed=3_000,
    mixed_seconds=1.0,
    load_requests=4,
)


@contextlib.contextmanager
def running_peers(folder: Path) -> Iterator[None]:
    """Start Redis, NATS and nchan, and stop them at the end; see peers/peers.sh."""
    environ = {**os.environ, "BENCH_PEERS_DIR": str(folder)}
    script = str(HERE / "peers" / "peers.sh")
    subprocess.run([script, "up"], check=True, env=environ)
    try:
        yield
    finally:
        subprocess.run([script, "down"], check=True, env=environ, stdout=subprocess.DEVNULL)


def compare_with_peers(name: str, folder: Path, repeats: int, short: bool) -> dict[str, Any]:
    """Measure one scenario of the project and the peers; the tables of bench.py."""
    path = folder / "data.db"
    remove_database(path)
    output = folder / f"{name}.json"
    peers_folder = folder / "peers"
    # The peers would load the data of an earlier part when they start.
    shutil.rmtree(peers_folder, ignore_errors=True)
    with running_peers(peers_folder), Server(path, HERE / "peers" / "plugins") as server:
        command = [sys.executable, str(HERE / "peers" / "bench.py"), *PEER_PARTS[name], "--project", server.url]
        command += ["--db", server.database, "--pid", str(server.pid), "--peers-dir", str(peers_folder)]
        command += ["--repeats", str(repeats), "--dir", str(folder), "--json", str(output)]
        if short:
            command += ["--short", "--peers", "redis-pubsub" if name == "peers_fanout" else "redis"]
        subprocess.run(command, check=True)
    remove_database(path)
    tables: dict[str, Any] = json.loads(output.read_text())
    return tables


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join([*PARTS, *PEER_PARTS])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {names}; default: all parts")
    parser.add_argument("--resume", action="store_true", help="skip the parts that the results contain")
    parser.add_argument("--render", action="store_true", help="measure nothing; only write the page")
    parser.add_argument(
        "--tiny", action="store_true", help="use tiny sizes and no peers, to check that the scripts run"
    )
    parser.add_argument("--short", action="store_true", help="measure what says most, in five minutes; write no page")
    parser.add_argument("--repeats", type=int, default=5, help="how often to repeat each measure (5; 3 with --short)")
    parser.add_argument("--dir", type=Path, help="folder for the databases; choose the disk that you want to measure")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results (results.json)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (docs/performance.md)")
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS and name not in PEER_PARTS:
            parser.error(f"unknown part {name}; choose one of {names}")
    return options


def main() -> None:
    options = parse_options()
    folder = options.dir or Path(tempfile.gettempdir()) / "pubsub-bench"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    if options.results.exists() and not options.short:
        results = json.loads(options.results.read_text())
    sizes = TINY if options.tiny else SHORT if options.short else Sizes(repeats=options.repeats)
    wanted = options.parts or (SHORT_PARTS if options.short else [*PARTS, *([] if options.tiny else PEER_PARTS)])
    if not options.render:
        make_programs()
        raise_open_files()
    for name in [] if options.render else wanted:
        if options.resume and name in results:
            continue
        began = time.monotonic()
        print(f"{name} …", flush=True)
        if name in PARTS:
            measured: Any = PARTS[name](folder, sizes)
        else:
            measured = compare_with_peers(name, folder, sizes.repeats, options.short)
        seconds = time.monotonic() - began
        results[name] = {"environment": environment(), "seconds": round(seconds, 1), "measured": measured}
        if not options.short:
            options.results.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {seconds:.0f} s", flush=True)
    print(f"\n{report.environment_text(results)}\n\n{report.targets(results)}")
    if not options.short:
        options.page.write_text(report.page(results))
        print(f"\nwrote {options.page}")


if __name__ == "__main__":
    main()
