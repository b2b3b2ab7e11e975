"""A copy of a table that never misses a change: load a snapshot, then follow the channel from its position.

    python examples/follow_table.py http://127.0.0.1:8001/data items

Triggers publish each change of a row as JSON to the channel ``changes/<table>``:
``{"id": …, "row": {…} or null}`` (see ``TRIGGERS``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from datasette_pubsub.client import Client

TRIGGERS = """
CREATE TRIGGER IF NOT EXISTS items_inserted AFTER INSERT ON items BEGIN
  INSERT INTO vpubsub (channel, payload) VALUES ('changes/items',
    json_object('id', NEW.id, 'row', json_object('id', NEW.id, 'value', NEW.value)));
END;
CREATE TRIGGER IF NOT EXISTS items_updated AFTER UPDATE ON items BEGIN
  INSERT INTO vpubsub (channel, payload) VALUES ('changes/items',
    json_object('id', NEW.id, 'row', json_object('id', NEW.id, 'value', NEW.value)));
END;
CREATE TRIGGER IF NOT EXISTS items_deleted AFTER DELETE ON items BEGIN
  INSERT INTO vpubsub (channel, payload) VALUES ('changes/items', json_object('id', OLD.id, 'row', NULL));
END;
"""

Rows = dict[int, dict[str, Any]]


def follow(address: str, table: str, until: Callable[[Rows, int], bool]) -> Rows:
    """Keep the table's rows up to date, by id, and return them when ``until(rows, position)`` is true.

    The client connects again by itself. What retention has removed while it was away cannot be applied: then all begins
    anew, with another snapshot.
    """
    with Client(address) as client:
        while True:
            answer = client.http.get(f"{client.base}/snapshot.json", params={"table": table})
            snapshot = answer.raise_for_status().json()
            rows: Rows = {row["id"]: row for row in snapshot["rows"]}
            position = int(snapshot["head"])
            if until(rows, position):
                return rows
            with client.subscribe(f"changes/{table}", after=position) as changes:
                for message in changes:
                    if message.missed:
                        break
                    change = message.json()
                    if change["row"] is None:
                        rows.pop(change["id"], None)
                    else:
                        rows[change["id"]] = change["row"]
                    if until(rows, message.id):
                        return rows


if __name__ == "__main__":

    def show(rows: Rows, position: int) -> bool:
        print(f"position {position}: {len(rows)} rows")
        return False

    follow(sys.argv[1], sys.argv[2], show)
