"""Drizzle, kysely and knex, as docs/orm.md shows them, and better-sqlite3 beneath them.

The examples of the page are run as they stand, in ``tests/node/orms``, with a live
subscriber beside each. npm runs here when that folder is not up to date, and
better-sqlite3 is compiled where its author's binary cannot be fetched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orms
import pytest
from node_packages import prepared
from orms import NODE_CLIENTS as CLIENTS
from orms import Shop, check, examples, run

pytestmark = pytest.mark.node

#: What was compiled for this machine, by version.
KEPT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datasette-pubsub-tests"

#: Runs something in a transaction that is rolled back, and notes what it gave or said.
ATTEMPT = """
import { strict as assert } from "node:assert";

const report: Record<string, unknown> = {};
const rollBack = new Error("rolled back");

async function attempt(name: string, inTransaction: (note: (value: unknown) => void) => unknown) {
  try {
    await inTransaction((value) => { report[name] = value; });
  } catch (error) {
    if (error !== rollBack) report[name] = String((error as Error).message);
  }
}
"""

MORE = {
    "drizzle": """
const never = { channel: "orders", payload: "never" };
await attempt("rollback", (note) => db.transaction((tx) => {
  tx.insert(users).values({ email: "never" }).run();
  const row = tx.insert(messages).values(never).returning().get();
  assert.match(row.createdAt, /^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{3}Z$/);
  note(row.id);
  throw rollBack;
}));
await attempt("again", (note) => db.transaction((tx) => {
  const { lastInsertRowid } = tx.insert(users).values({ email: "never" }).run();
  const plain = tx.insert(messages).values({ ...never, key: "order-8" }).run();
  assert.deepEqual(plain, { changes: 0, lastInsertRowid });
  const row = tx.insert(messages).values({ ...never, key: "order-8" }).returning().get();
  note(row === undefined ? "undefined" : row);
  throw rollBack;
}));
await attempt("update", () => db.update(messages).set({ payload: "changed" }).run());
await attempt("delete", () => db.delete(messages).run());
console.log(JSON.stringify(report));
""",
    "kysely": """
const never = { channel: "orders", payload: "never" };
await attempt("rollback", (note) => db.transaction().execute(async (tx) => {
  await tx.insertInto("users").values({ email: "never" }).execute();
  note((await tx.insertInto("vpubsub").values(never).returning("id").executeTakeFirstOrThrow()).id);
  throw rollBack;
}));
await attempt("again", (note) => db.transaction().execute(async (tx) => {
  const { insertId } = await tx.insertInto("users").values({ email: "never" }).executeTakeFirstOrThrow();
  const plain = await tx.insertInto("vpubsub").values({ ...never, key: "order-8" }).executeTakeFirstOrThrow();
  assert.deepEqual([plain.insertId, plain.numInsertedOrUpdatedRows], [insertId, 0n]);
  const insert = tx.insertInto("vpubsub").values({ ...never, key: "order-8" }).returning("id");
  const row = await insert.executeTakeFirst();
  await assert.rejects(insert.executeTakeFirstOrThrow(), { constructor: NoResultError });
  note(row === undefined ? "undefined" : row);
  throw rollBack;
}));
await attempt("update", () => db.updateTable("vpubsub").set({ payload: "changed" }).execute());
await attempt("delete", () => db.deleteFrom("vpubsub").execute());
console.log(JSON.stringify(report));
await db.destroy();
""",
    "knex": """
const never = { channel: "orders", payload: "never" };
await attempt("rollback", (note) => db.transaction(async (tx) => {
  await tx("users").insert({ email: "never" });
  note((await tx("vpubsub").insert(never).returning("id"))[0].id);
  throw rollBack;
}));
await attempt("again", (note) => db.transaction(async (tx) => {
  const [user] = await tx("users").insert({ email: "never" });
  assert.deepEqual(await tx("vpubsub").insert({ ...never, key: "order-8" }), [user]);
  const rows = await tx("vpubsub").insert({ ...never, key: "order-8" }).returning("id");
  note(rows.length === 0 ? "undefined" : rows);
  throw rollBack;
}));
await attempt("update", () => db("vpubsub").update({ payload: "changed" }));
await attempt("delete", () => db("vpubsub").del());
console.log(JSON.stringify(report));
await db.destroy();
""",
}

#: Ends the connections, which would keep the process.
END = {"drizzle": "", "kysely": "await db.destroy();\n", "knex": "await db.destroy();\n"}


def compiled() -> Path:
    """The folder of these clients, with better-sqlite3 as a program for this machine.

    The program is kept for other clones, and for the next ``npm ci``: to compile it takes a minute.
    """
    folder = prepared("orms")
    module = folder / "node_modules" / "better-sqlite3"
    program = module / "build" / "Release" / "better_sqlite3.node"
    with (folder / "package.json").open() as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not program.exists():
            version = json.loads((module / "package.json").read_text())["version"]
            (machine,) = run(
                ["node", "-p", "[process.platform, process.arch, process.versions.modules].join('-')"], folder
            )
            kept = KEPT / f"better-sqlite3-{version}-{machine}.node"
            if not kept.exists():
                _compile(folder)
                KEPT.mkdir(parents=True, exist_ok=True)
                new = kept.with_suffix(f".{os.getpid()}")
                shutil.copyfile(program, new)
                new.replace(kept)
            program.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, program)
    return folder


def _compile(folder: Path) -> None:
    # Not optimised: that would take two minutes, and nothing here is measured.
    environment = {**os.environ, "CFLAGS": "-O0", "CXXFLAGS": "-O0 -w", "JOBS": "max"}
    prefix = Path(shutil.which("node") or "").resolve().parent.parent
    if (prefix / "include" / "node" / "node.h").exists():
        # Else the headers would be fetched, too.
        environment["npm_config_nodedir"] = str(prefix)
    done = subprocess.run(
        ["npm", "rebuild", "better-sqlite3"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode and shutil.which("g++") is None:
        pytest.skip("better-sqlite3 cannot be fetched as a binary, and there is no g++ to compile it")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def node() -> Path:
    return compiled()


@pytest.fixture(scope="module")
def shops(node: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shop]]:
    with orms.shops(tmp_path_factory.mktemp("orms"), [*CLIENTS, "numbers"]) as found:
        yield found


@pytest.mark.parametrize("client", CLIENTS)
def test_the_examples(shops: dict[str, Shop], node: Path, client: str) -> None:
    shop, blocks = shops[client], examples(client)
    assert list(blocks) == ["models", "transaction", "once"]
    (shop.folder / "package.json").write_text('{"type": "module"}')
    (shop.folder / "node_modules").symlink_to(node / "node_modules")
    imports = 'import { NoResultError } from "kysely";\n' if client == "kysely" else ""
    scripts = {
        "first.ts": blocks["models"] + blocks["transaction"] + blocks["once"] + END[client],
        "second.ts": imports + blocks["models"] + blocks["once"] + ATTEMPT + MORE[client],
    }
    for name, code in scripts.items():
        (shop.folder / name).write_text(code)
    command = ["node", "--import", "tsx"]
    check(shop, [*command, "first.ts"], [*command, "second.ts"], "undefined", "undefined")


def test_whole_numbers_reach_subscribers_as_whole_numbers(shops: dict[str, Shop], node: Path) -> None:
    shop = shops["numbers"]
    with shop.subscriber("numbers") as subscriber:
        (report,) = run(["node", "numbers.cjs", str(shop.path)], node)
        found = json.loads(report)
        assert found["published"] == [{"changes": 1, "lastInsertRowid": number} for number in range(3, 10)]
        assert set(found["stored"]) == {"real", "integer"}
        numbers = ["5", "1700000000000", "-3", "0", "2.5", "9007199254740991", "5"]
        assert subscriber.received() == list(zip(range(3, 10), numbers, strict=True))
