#!/usr/bin/env python3
"""Measures everything that docs/performance.md says, and writes that page. See README.md.

Each part is written to the results file as soon as it is done; ``--resume``
leaves out what is there already, and a part can be measured by name alone.
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

import report
from filtered import filtered
from measures import PARTS, Sizes, make_programs
from server import HERE, Server, environment, raise_open_files, remove

RESULTS = HERE / "results.json"
PAGE = HERE.parent / "docs" / "performance.md"

PARTS["filtered"] = filtered

#: The parts of the comparison with the peers: what bench.py is asked for.
SIDES = {
    "peers_publish": ["publish", "--peers", "redis", "--formats", "raw", "--empty-route", "/-/empty"],
    "peers_pipeline": ["pipeline", "--peers", "redis", "--formats", "raw"],
    "peers_latency": ["latency", "--peers", "redis", "--formats", "raw"],
    "peers_fanout": [
        "fanout",
        *("--peers", "redis-pubsub,nats,nats-core,nchan"),
        *("--formats", "raw,connect,connect-proto"),
    ],
}

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
    filtered_subscribers=5,
    filtered_messages=300,
    filtered_repeats=1,
    load_requests=4,
)


@contextlib.contextmanager
def peers_up(folder: Path) -> Iterator[None]:
    """Redis, NATS and nchan running; see peers/peers.sh."""
    environ = {**os.environ, "BENCH_PEERS_DIR": str(folder)}
    script = str(HERE / "peers" / "peers.sh")
    subprocess.run([script, "up"], check=True, env=environ)
    try:
        yield
    finally:
        subprocess.run([script, "down"], check=True, env=environ, stdout=subprocess.DEVNULL)


def side(name: str, folder: Path, repeats: int) -> dict[str, Any]:
    """One scenario side by side with the peers: bench.py's tables."""
    path = folder / "data.db"
    remove(path)
    output = folder / f"{name}.json"
    peers_folder = folder / "peers"
    # What an earlier part has stored there is read by them as they start.
    shutil.rmtree(peers_folder, ignore_errors=True)
    with peers_up(peers_folder), Server(path, HERE / "peers" / "plugins") as server:
        command = [sys.executable, str(HERE / "peers" / "bench.py"), *SIDES[name], "--project", server.url]
        command += ["--db", server.database, "--pid", str(server.pid), "--peers-dir", str(peers_folder)]
        command += ["--repeats", str(repeats), "--dir", str(folder), "--json", str(output)]
        subprocess.run(command, check=True)
    remove(path)
    tables: dict[str, Any] = json.loads(output.read_text())
    return tables


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join([*PARTS, *SIDES])}; all if none")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that the results hold already")
    parser.add_argument("--render", action="store_true", help="measure nothing, only write the page")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, without peers: only to see that it runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="folder for the databases, on the disk to be measured")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    for name in options.parts:
        if name not in PARTS and name not in SIDES:
            parser.error(f"unknown part {name}; there are {', '.join([*PARTS, *SIDES])}")
    return options


def main() -> None:
    options = parse_options()
    folder = options.dir or Path(tempfile.gettempdir()) / "pubsub-bench"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    sizes = TINY if options.tiny else Sizes(repeats=options.repeats)
    wanted = options.parts or [*PARTS, *([] if options.tiny else SIDES)]
    if not options.render:
        make_programs()
        raise_open_files()
    for name in [] if options.render else wanted:
        if options.resume and name in results:
            continue
        began = time.monotonic()
        print(f"{name} …", flush=True)
        measured = PARTS[name](folder, sizes) if name in PARTS else side(name, folder, options.repeats)
        seconds = time.monotonic() - began
        results[name] = {"environment": environment(), "seconds": round(seconds, 1), "measured": measured}
        options.results.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {seconds:.0f} s", flush=True)
    options.page.write_text(report.page(results))
    print(f"written: {options.page}")


if __name__ == "__main__":
    main()
