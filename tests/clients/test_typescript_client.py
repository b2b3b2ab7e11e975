"""The package for TypeScript: its own tests, what it ships, and its client against real servers."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from auth import cookie, token
from doc_pages import BLOCK, DOCS
from nats_servers import trim
from node_packages import _run, example_folder, prepared_package
from places import PACKAGE, ROOT
from servers import OPEN, Server, sqlite_shell, wait_for

pytestmark = pytest.mark.node

#: Transports, and whether they need a server that speaks HTTP/2.
TRANSPORTS = {
    "address": False,
    "node-1.1": False,
    "node-1.1-json": False,
    "grpc-web": False,
    "node-2": True,
    "grpc": True,
}


@pytest.fixture(scope="session")
def package() -> Path:
    return prepared_package()


def environment(server: Server, transport: str) -> dict[str, str]:
    own = {"PUBSUB_URL": f"{server.url}/data", "PUBSUB_TRANSPORT": transport}
    if not server.http2:
        # Such a server has a secret that the tests know.
        own |= {"PUBSUB_COOKIE": cookie("ann")["Cookie"], "PUBSUB_TOKEN": token("ann")}
    return {**os.environ, **own}


def test_the_package_is_typed_and_built_and_ships_what_it_should(package: Path) -> None:
    _run(["npm", "run", "types"], package)
    # Builds it, as publishing does.
    (packed,) = json.loads(_run(["npm", "pack", "--dry-run", "--json", "--silent"], package))
    names = {file["path"] for file in packed["files"]}
    sources = {path.relative_to(package / "src").with_suffix("").as_posix() for path in package.glob("src/**/*.ts")}
    assert "gen/db/v1/db_pb" in sources
    built = {f"dist/{name}{end}" for name in sources for end in (".js", ".js.map", ".d.ts", ".d.ts.map")}
    assert names == built | {f"src/{name}.ts" for name in sources} | {"package.json", "README.md", "LICENSE"}
    (about,) = (json.loads(line) for line in [(package / "package.json").read_text()])
    exported = {path for entry in about["exports"].values() if isinstance(entry, dict) for path in entry.values()}
    assert {path.removeprefix("./") for path in exported} <= names


def test_its_own_tests(package: Path) -> None:
    report = _run(["npm", "test"], package, timeout=180)
    assert "# fail 0" in report
    assert "# pass 0" not in report


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_its_client_against_a_real_server(serve: Callable[..., Server], package: Path, transport: str) -> None:
    rules = {"channel_permissions": {"closed": {"publish": {"id": "ann"}}}}
    server = serve(config={**OPEN, "plugins": {"datasette-pubsub": rules}}, http2=TRANSPORTS[transport])
    done = subprocess.run(
        ["node_modules/.bin/tsx", "--test", "test/server/server.test.ts"],
        cwd=package, env=environment(server, transport), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 4" in done.stdout
    assert "Traceback" not in server.log


README = (PACKAGE / "README.md").read_text()


@pytest.fixture
def examples(package: Path, tmp_path: Path) -> Path:
    return example_folder(tmp_path)


def test_the_example_of_its_readme(serve: Callable[..., Server], package: Path, examples: Path) -> None:
    server = serve()
    ((_, code),) = BLOCK.findall(README)
    (examples / "example.ts").write_text(code.replace("127.0.0.1:8001", f"127.0.0.1:{server.port}"))
    assert _run([str(package / "node_modules" / ".bin" / "tsx"), "example.ts"], examples) == "orders 9\n"


def test_the_examples_are_typed(package: Path, examples: Path) -> None:
    """As a program that uses the package has it: its types come from what was built."""
    texts = (README, DOCS["typescript"], (ROOT / "README.md").read_text())
    codes = [code for text in texts for kind, code in BLOCK.findall(text) if kind == "typescript"]
    assert len(codes) == 6
    for number, code in enumerate(codes):
        (examples / f"example{number}.ts").write_text(code)
    options = {"strict": True, "noEmit": True, "module": "NodeNext", "target": "ES2022", "lib": ["ES2022", "DOM"]}
    (examples / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts"]}))
    _run([str(package / "node_modules" / ".bin" / "tsc")], examples)


class Follow:
    """A subscriber in a process of its own, and what it prints."""

    def __init__(self, package: Path, server: Server, count: int, acks: int = 0, **options: Any) -> None:
        self._process = subprocess.Popen(
            ["node_modules/.bin/tsx", "test/server/follow.ts", str(count), str(acks), json.dumps(options)],
            cwd=package, env=environment(server, "address"), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def rest(self) -> list[dict[str, Any]]:
        output, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        return [json.loads(line) for line in output.splitlines()]


def test_gaps_are_told(serve: Callable[..., Server], package: Path) -> None:
    server = serve()
    server.publish(*({"channel": "a", "payload": str(n)} for n in range(10)))
    own: dict[str, Any] = {"subscription": "s", "ack": "explicit"}
    assert len(Follow(package, server, 1, 1, channel="a", start="earliest", **own).rest()) == 2
    trim(server.path, "a", 4)
    position, *found = Follow(package, server, 2, **own).rest()
    assert {"gap": {"missed": 3, "resumedAt": 4}} in [position, *found]
    assert [line for line in found if "id" in line] == [
        {"id": 5, "payload": "4", "missed": 3},
        {"id": 6, "payload": "5", "missed": 0},
    ]


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_restart_is_not_noticed(serve: Callable[..., Server], package: Path, how: str) -> None:
    """Before the first message, the place is the head of the first connection."""
    server = serve()
    server.publish(channel="a", payload="old")
    following = Follow(package, server, 2, channel="a", start="latest")
    assert following.line() == {"position": 1}
    if how == "killed":
        server.kill()
    else:
        server.stop()
    sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('a', 'while it was down')")
    server.start()
    server.publish(channel="a", payload="afterwards")
    assert [line["payload"] for line in following.rest()] == ["while it was down", "afterwards"]


@pytest.mark.parametrize("transport", ["address", "node-1.1"])
@pytest.mark.parametrize(
    ("times", "seconds"), [(3, 1.0), pytest.param(100, 3.0, marks=pytest.mark.slow)], ids=["short", "five minutes"]
)
def test_nothing_is_lost_while_the_server_is_killed(
    serve: Callable[..., Server], package: Path, times: int, seconds: float, transport: str
) -> None:
    """With keys and explicit acks: each message once and in order, and the ids that the publisher was told."""
    server = serve()
    with subprocess.Popen(
        ["node_modules/.bin/tsx", "test/server/killed.ts"],
        cwd=package, env=environment(server, transport), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for(lambda: "vpubsub" in str(server.rows("SELECT name FROM sqlite_master")), "the first message")
        for _ in range(times):
            time.sleep(seconds)
            assert process.poll() is None, "neither the publisher nor the subscriber may fail"
            server.kill()
            server.start()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
    report = json.loads(output)
    count = len(report["told"])
    print(json.dumps({"kills": times, "published": count, "received": len(report["ids"])}))
    assert report["numbers"] == list(range(count)), "lost, twice or out of order"
    assert report["ids"] == report["told"]
    stored = server.rows("SELECT id, payload ->> 'number' FROM vpubsub WHERE payload ->> 'number' >= 0 ORDER BY id")
    assert stored == list(zip(report["told"], range(count), strict=True)), "published twice"
    assert count > 20 * times
