"""The ways around the entrances: the plugin's tables as tables, copies of them, tokens, files, what can be counted."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from auth import headers
from datasette.utils import tilde_encode
from entrances import CONFIG
from logs_with_views import server
from servers import Server, sqlite_shell

from datasette_pubsub.core.settings import Settings
from datasette_pubsub.storage import schema

__all__ = ["server"]


#: Names of pages below a table or row, and what may stand behind a question mark.
BELOW = (
    "", ".json", ".csv", ".csv?_stream=1", "?_facet=channel", ".json?_facet=channel&_extra=facet_results,count",
    "?_search=hidden", "?channel__startswith=s", ".json?_shape=array",
    ".json?_extra=suggested_facets,human_description_en",
    "/-/schema", "/-/autocomplete?q=s", "/2", "/2.json", "/2.json?_extra=foreign_key_tables",
    "/2.blob?_blob_column=payload", "/2/-/fragment", "/-/fragment?_row=2",
)  # fmt: skip

ELSEWHERE = (
    "/", "/.json", "/data", "/data.json", "/-/databases.json", "/-/jump", "/-/jump.json?q=s", "/-/jump.json?q=pubsub",
    "/-/check", "/-/allowed", "/-/rules", "/-/actions", "/-/permissions", "/-/allowed.json?action=view-channel",
    "/-/allowed.json?action=publish-message", "/-/allowed.json?action=view-table", "/-/rules.json?action=view-channel",
    "/-/check.json?action=view-channel&parent=data&child=secret", "/-/config.json", "/-/metadata.json", "/-/threads",
    "/-/logs", "/-/messages", "/-/schema.json", "/data/-/schema.json", "/data/-/queries.json", "/data.db",
    "/data/-/execute-write?sql=insert+into+existing+select+payload+from+vpubsub",
    "/data/-/query.json?sql=select+payload+from+vpubsub",
    "/data/-/query?sql=explain+select+payload+from+vpubsub",
    "/data/-/foreign-key-targets.json", "/_internal", "/data/-/pubsub", "/data/-/pubsub?before=99",
    "/data/-/pubsub/secret", "/data/-/pubsub/-/channels.json", "/data/-/pubsub/-/messages.json",
    "/data/-/pubsub/-/messages.csv?q=hidden", "/data/-/pubsub/-/activity.json", "/data/-/pubsub/-/publish-form",
    "/data/-/pubsub/-/subscriptions", "/data/existing/-/broadcast",
    "/data/vpubsub/-/broadcast", "/data/-/pubsub/-/subscriptions.json",
    "/data/-/pubsub/-/snapshot.json?sql=select+payload+from+vpubsub",
)  # fmt: skip

OURS = (
    "vpubsub",
    "pubsub_subscriptions",
    "_pubsub_trims",
    "_pubsub_released",
    "_pubsub_file",
    "_pubsub_probe",
    "_pubsub_broadcasts",
    "_pubsub_replaced",
    "_pubsub_standing",
)


def crawl(server: Server, actor: str | None, begin: list[str], most: int) -> Iterator[tuple[str, httpx.Response]]:
    """These pages, and what they link to, up to so many."""
    seen: set[str] = set()
    waiting = list(begin)
    with httpx.Client(base_url=server.url, headers=headers(actor), timeout=30) as client:
        while waiting and len(seen) < most:
            address = waiting.pop(0)
            if address in seen:
                continue
            seen.add(address)
            answer = client.get(address)
            yield address, answer
            for link in re.findall(r'(?:href|src|action)="(/[^/"][^"#]*)', answer.text):
                if not re.search(r"/-/static|logout", link):
                    waiting.append(html.unescape(link))


def test_no_page_shows_a_hidden_channel(server: Server) -> None:
    """All pages that can be thought of, and those that they link to: neither its name nor its messages."""
    addresses = [
        *ELSEWHERE,
        *(f"/data/{table}{below}" for table in ("vpubsub", "pubsub_subscriptions", "recent") for below in BELOW),
    ]
    for actor in ("eve", None):
        opened = 0
        for address, answer in crawl(server, actor, addresses, 140):
            opened += answer.status_code == 200
            assert answer.status_code < 500 or "/-/pubsub" not in address, address
            text = answer.text.replace(html.escape(address), "")
            assert "hidden text" not in text, address
            # The channel's name is said back only to who said it.
            assert "secret" in address or not re.search(r"\bsecret\b", text), address
        assert opened > 30, "there are pages for everybody"
    assert "hidden text" in httpx.get(f"{server.url}/data/vpubsub/2", headers=headers("ada")).text


def test_hidden_messages_change_nothing_that_can_be_seen(server: Server) -> None:
    """But for the ids, which count everything."""
    addresses = [*ELSEWHERE, "/data/existing.json?_extra=count", "/data/shown.json", "/data/other.json"]
    with httpx.Client(base_url=server.url, headers=headers("eve"), timeout=30) as client:

        def shown(address: str) -> str:
            # The scripts begin after the newest id; pages tell how long they took. Pictures of a channel's rate
            # move on with the time: what they add up to stays.
            moving = r'(last-id|head|span)="\d+"|[\d.]+ms|"(size|span)": \d+|"head": "\d+"| d="M.*?"'
            text = re.sub(moving, "", client.get(address).text)
            return re.sub(r"(\d+,\s*){20,}\d+", lambda found: str(sum(map(int, found[0].split(",")))), text)

        def changed(among: list[str]) -> list[str]:
            before = {address: shown(address) for address in among}
            sqlite_shell(server.path, "INSERT INTO vpubsub (channel, payload) VALUES ('secret', 's'), ('new', 'n')")
            return [address for address in among if shown(address) != before[address]]

        # What moves on with the time may do so in between, but not again and again.
        assert changed(changed(changed(addresses))) == []


def test_what_is_made_of_the_log_is_closed_like_the_log(server: Server) -> None:
    """Views and search indexes, unless a rule opens them by name."""

    def opened(actor: str | None) -> set[str]:
        tables = ("recent", "of a view", "found", "other", "shown", *OURS)
        status = {
            name: httpx.get(f"{server.url}/data/{tilde_encode(name)}", headers=headers(actor)).status_code
            for name in tables
        }
        assert set(status.values()) <= {200, 403}
        return {name for name, found in status.items() if found == 200}

    assert opened("eve") == opened(None) == opened("bob") == {"other", "shown"}
    everything = {"recent", "of a view", "found", "other", "shown", *OURS}
    # The cursors of all, and the rows of standing queries, are for root, or for whom a rule names.
    assert opened("ada") == everything - {"pubsub_subscriptions", "_pubsub_standing"}
    assert opened("root") == everything


def test_without_rules_the_cursors_of_others_are_not_shown(serve: Callable[..., Server], tmp_path: Path) -> None:
    config = {"databases": {"data": {"tables": {"pubsub_subscriptions": {"allow": {"id": "ops"}}}}}}
    server = serve(config=config)
    conn = sqlite3.connect(server.path)
    schema.set_durability(conn, Settings())
    schema.install(conn, Settings())
    conn.close()
    address = f"{server.url}/data/pubsub_subscriptions.json"
    assert [httpx.get(address, headers=headers(actor)).status_code for actor in (None, "eve", "ops")] == [403, 403, 200]
    assert httpx.get(f"{server.url}/data/vpubsub.json").status_code == 200


#: What nobody does through Datasette, however much he may do to tables; as SQL.
FORBIDDEN_SQL = """
DELETE FROM vpubsub
UPDATE vpubsub SET payload = 'y'
INSERT OR REPLACE INTO vpubsub (id, channel, payload) VALUES (1, 'open/1', 'y')
INSERT INTO _pubsub_released VALUES ('secret', 99)
INSERT INTO _pubsub_trims VALUES ('secret', 9, 1, 5, x'00')
UPDATE sqlite_sequence SET seq = 0
DELETE FROM sqlite_sequence
DELETE FROM _sqlite_migrations
UPDATE pubsub_subscriptions SET cursor = 2
UPDATE pubsub_subscriptions SET owner = 'bob'
INSERT INTO pubsub_subscriptions (owner, name) VALUES ('ada', 'theirs')
DELETE FROM pubsub_subscriptions
INSERT INTO _pubsub_file VALUES (1, 9, 'x')
DROP TABLE _pubsub_released
DROP TABLE pubsub_subscriptions
DROP TABLE vpubsub
DROP TRIGGER vpubsub_delete
DROP INDEX vpubsub_key
ALTER TABLE vpubsub RENAME TO gone
ALTER TABLE pubsub_subscriptions RENAME TO gone
ALTER TABLE _pubsub_released ADD COLUMN more
CREATE INDEX one ON vpubsub (payload)
CREATE UNIQUE INDEX one ON pubsub_subscriptions (owner)
CREATE TRIGGER mine AFTER INSERT ON existing BEGIN INSERT INTO vpubsub (channel, payload) VALUES ('secret', 'x'); END
PRAGMA writable_schema = 1
ATTACH 'data.db' AS again
""".strip().splitlines()

#: Besides, for who does not see every channel, or does not publish to every channel.
CLOSED_SQL = """
CREATE TABLE copy AS SELECT * FROM vpubsub
CREATE VIEW copy AS SELECT * FROM vpubsub
CREATE VIEW copy AS SELECT * FROM recent
INSERT INTO existing (text) SELECT payload FROM vpubsub
INSERT INTO existing (text) SELECT payload FROM VPUBSUB
INSERT INTO existing (text) SELECT payload FROM recent
INSERT INTO existing (text) SELECT found.payload FROM found
INSERT INTO existing (text) VALUES ('x') RETURNING (SELECT payload FROM VPubSub WHERE id = 2)
UPDATE existing SET text = (SELECT payload FROM main.vpubsub WHERE id = 2)
INSERT INTO vpubsub (channel, payload) VALUES ('open/1', 'x')
INSERT INTO VPUBSUB (channel, payload) VALUES ('open/1', 'x')
INSERT INTO existing (text) SELECT publish_batch('secret', 'x')
INSERT INTO existing (text) SELECT publish_batch(c.value, 'x') FROM json_each('["open/1", "secret"]') c
""".strip().splitlines()

#: The same through the JSON API.
FORBIDDEN_API: list[tuple[str, dict[str, Any]]] = [
    ("vpubsub/2/-/delete", {}),
    ("vpubsub/2/-/update", {"update": {"payload": "y"}}),
    ("vpubsub/-/upsert", {"rows": [{"id": 2, "channel": "secret", "payload": "y"}]}),
    ("vpubsub/-/drop", {"confirm": True}),
    ("_pubsub_released/-/insert", {"row": {"channel": "secret", "id": 99}}),
    ("_pubsub_released/-/upsert", {"rows": [{"channel": "secret", "id": 99}]}),
    ("_pubsub_trims/-/insert", {"row": {"channel": "secret", "last_id": 2, "first_id": 1, "messages": 2, "runs": ""}}),
    ("sqlite_sequence/-/insert", {"row": {"name": "vpubsub", "seq": 0}}),
    ("pubsub_subscriptions/1/-/update", {"update": {"cursor": 2}}),
    ("pubsub_subscriptions/1/-/update", {"update": {"owner": "bob"}}),
    ("pubsub_subscriptions/1/-/delete", {}),
    ("pubsub_subscriptions/-/insert", {"row": {"owner": "ada", "name": "theirs"}}),
    ("pubsub_subscriptions/-/drop", {"confirm": True}),
    ("_pubsub_file/-/insert", {"row": {"one": 1, "schema_version": 9, "instance_id": "x"}}),
    ("_pubsub_broadcasts/-/insert", {"row": {"table_name": "existing", "definition": "{}", "triggers": "[]"}}),
    (
        "_pubsub_standing/-/insert",
        {"row": dict.fromkeys(("name", "channel", "sql", "params", "key", "operations"), "x")},
    ),
    ("-/create", {"table": "_pubsub_released", "row": {"channel": "secret", "id": 99}}),
]


#: Besides, for who does not publish to every channel.
CLOSED_API: list[tuple[str, dict[str, Any]]] = [
    ("vpubsub/-/insert", {"row": {"channel": "open/1", "payload": "x"}}),
    ("_pubsub_probe/-/insert", {"row": {"created_at": 1}}),
]


def test_nobody_alters_the_log_or_another_cursor(server: Server) -> None:
    """Through Datasette; of those who have every right to tables, one sees all channels, the other does not."""

    def state() -> list[list[Any]]:
        tables = ("sqlite_master", "sqlite_sequence", "_sqlite_migrations", *OURS)
        return [server.rows(f"SELECT * FROM {table}") for table in tables]

    before = state()
    for actor in ("ada", "bob"):
        with httpx.Client(base_url=f"{server.url}/data/", headers=headers(actor), timeout=30) as client:
            for sql in [*FORBIDDEN_SQL, *(CLOSED_SQL if actor == "bob" else [])]:
                answer = client.post("-/execute-write", json={"sql": sql})
                assert answer.status_code in (400, 403), f"{actor}: {sql}: {answer.text}"
                assert "hidden text" not in answer.text, sql
            for path, body in [*FORBIDDEN_API, *(CLOSED_API if actor == "bob" else [])]:
                answer = client.post(path, json=body)
                assert answer.status_code in (400, 403, 404), f"{actor}: {path} {body}: {answer.text}"
        assert state() == before, actor
    assert server.rows("SELECT * FROM existing") == []


def test_a_file_that_can_be_downloaded(serve: Callable[..., Server], tmp_path: Path) -> None:
    """It holds the log: for those who see all of it."""
    path = tmp_path / "file.db"
    conn = sqlite3.connect(path)
    schema.install(conn, Settings())
    conn.execute("INSERT INTO vpubsub (channel, payload) VALUES ('secret', 'hidden text')")
    conn.commit()
    conn.close()
    server = serve(config=CONFIG, options=["--immutable", str(path)])
    status = {
        actor: httpx.get(f"{server.url}/file.db", headers=headers(actor)).status_code for actor in ("ada", "eve", None)
    }
    assert status == {"ada": 200, "eve": 403, None: 403}
