#!/usr/bin/env python3
"""Measure datasette-pubsub and its peers in one run, as ratios. See README.md.

Every scenario interleaves all systems within each repeat. The bench calibrates the
number of requests of a run once per system, so that it measures slow and fast
systems for about the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import sqlite3
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from loading import HERE, SETTLE_SECONDS
from peers import PEERS, open_peer
from scenarios import SHORT, Bench, Shapes
from targets import PAYLOAD, EmptyRoute, Project, ProjectConnect, ProjectStream, Target

DEFAULT_PEERS_DIR = Path(tempfile.gettempdir()) / "pubsub-bench-peers"


# --- the project ------------------------------------------------------------


def check_project(project: Project) -> str | None:
    """Publish one message to a subscriber of this format; returns the reason if it does not arrive."""
    try:
        with (
            socket.create_connection(("127.0.0.1", project.port), 5) as subscriber,
            socket.create_connection(("127.0.0.1", project.port), 5) as publisher,
        ):
            subscriber.settimeout(3)
            publisher.settimeout(5)
            subscriber.sendall(project.subscribe("check"))
            time.sleep(SETTLE_SECONDS)
            publish = project.publish("check", [PAYLOAD], push=True)
            publisher.sendall(publish.request)
            answer = b""
            while publish.token not in answer:
                data = publisher.recv(1 << 16)
                answer += data
                if not data or any(token in answer for token in publish.abort):
                    return f"the server refused the publish: {answer[:300]!r}"
            stream = b""
            while stream.count(b'"~') < 1:
                data = subscriber.recv(1 << 16)
                stream += data
                if not data:
                    return f"the stream ended: {stream[:300]!r}"
    except OSError as problem:
        return f"{problem or 'no message arrived'}"
    return None


def open_project(options: argparse.Namespace) -> list[Target]:
    targets: list[Target] = []
    for name in options.formats.split(","):
        try:
            project = Project(options.project, options.db, options.token, options.pid, name)
        except ValueError as problem:
            sys.exit(str(problem))
        reason = check_project(project)
        if reason is None:
            targets.append(project)
        elif name == "raw":
            sys.exit(f"the project does not deliver a message: {reason}")
        else:
            print(f"skipped {project.name}: {reason}")
    first = targets[0]
    assert isinstance(first, Project)
    targets += [ProjectStream(each, fanout=True) for each in targets if isinstance(each, Project)]
    targets += [ProjectStream(first), ProjectConnect(first, binary=False), ProjectConnect(first, binary=True)]
    if options.empty_route:
        targets.append(EmptyRoute(first, options.empty_route))
    return targets


# --- command line -----------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=["publish", "pipeline", "fanout", "latency", "limits", "all"])
    parser.add_argument("--project", metavar="URL_BASE", help="address of the running Datasette; http, loopback")
    parser.add_argument("--db", default="data", help="database name in the project's URLs")
    parser.add_argument("--token", help="token for the header Authorization: Bearer")
    parser.add_argument("--empty-route", metavar="PATH", help="a route of the project's server that does nothing")
    parser.add_argument("--pid", type=int, help="process id of the project's server, to measure its CPU time")
    parser.add_argument(
        "--formats",
        default="raw,envelope,connect",
        help=f"stream formats of the project, raw first; any of {', '.join(Project.FORMATS)}",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"any of {', '.join(PEERS)}; empty: none")
    parser.add_argument("--peers-dir", type=Path, help="BENCH_PEERS_DIR of peers.sh")
    parser.add_argument("--repeats", type=int, default=5, help="how often to measure each system (5)")
    parser.add_argument("--short", action="store_true", help="only the shapes that say most")
    parser.add_argument("--dir", help="folder that limits writes to; use the disk of the project's database")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to this file")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if options.project and options.formats.split(",")[0] != "raw":
        parser.error("--formats must start with raw; the ratios are against it")
    for name in options.formats.split(","):
        if name not in Project.FORMATS:
            parser.error(f"unknown format {name}; there are {', '.join(Project.FORMATS)}")
    for name in filter(None, options.peers.split(",")):
        if name not in PEERS:
            parser.error(f"unknown peer {name}; there are {', '.join(PEERS)}")
    return options


def open_targets(options: argparse.Namespace) -> list[Target]:
    targets = open_project(options) if options.project else []
    folder = options.peers_dir or Path(os.environ.get("BENCH_PEERS_DIR", DEFAULT_PEERS_DIR))
    for name in filter(None, options.peers.split(",")):
        try:
            targets.append(open_peer(name, folder))
        except (OSError, ValueError) as problem:
            sys.exit(f"{name} is not running ({problem}); run ./peers.sh up, or remove it from --peers")
    return targets


def main() -> None:
    options = parse_options()
    for program in ("load", "sink", "ceiling"):
        if not (HERE / program).exists():
            sys.exit("run make first")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    targets = [] if options.scenario == "limits" else open_targets(options)
    started = time.time()
    environment = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "repeats": options.repeats,
        "durability": {target.name: target.durability for target in targets},
    }
    print(
        f"{environment['cores']} cores, kernel {environment['kernel']}, Python"
        f" {environment['python']}, SQLite {environment['sqlite']}, {options.repeats} repeats"
    )
    for target in targets:
        print(f"  {target.name:20} {target.durability}")
    print()
    with tempfile.TemporaryDirectory(prefix="pubsub-bench-", dir=options.dir) as folder:
        bench = Bench(targets, options.repeats, Path(folder), SHORT if options.short else Shapes())
        chosen = ["publish", "pipeline", "fanout", "latency", "limits"]
        for scenario in chosen if options.scenario == "all" else [options.scenario]:
            getattr(bench, scenario)()
    print(f"{time.time() - started:.0f} s")
    if options.json:
        result = {"environment": environment, "tables": [asdict(table) for table in bench.tables]}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
