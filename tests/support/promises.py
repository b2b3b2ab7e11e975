"""What is promised of delivery, whatever happened."""

from __future__ import annotations

from witnesses import Truth
from world import World
from world_readers import Reader


async def check(world: World, truth: Truth) -> None:
    """All that is promised of delivery, whatever happened."""
    moved = await world.elsewhere(lambda conn: conn.execute("SELECT * FROM moved").fetchall())
    cursors = dict(
        await world.elsewhere(lambda conn: conn.execute("SELECT name, cursor FROM pubsub_subscriptions").fetchall())
    )
    assert all(became >= was for _, was, became in moved), "a cursor moved back"
    assert all("never" not in payload for _, payload in truth.said.values())
    for number, what in world.accepted.items():
        assert truth.said.get(number) == what, "an acknowledged publish is in the log, under its id"
    for reader in world.readers:
        check_reader(reader, truth)
        if reader.ack == "auto":
            assert cursors[reader.name] >= reader.connections[-1].reached, "the cursor was saved"
        else:
            assert cursors[reader.name] == max(reader.acknowledged, reader.connections[0].start), "no ack was lost"


def check_reader(reader: Reader, truth: Truth) -> None:
    told = f"{reader.name}: "
    first = reader.connections[0]
    owed = truth.ids(reader.selector, first.start) - first.gone_before
    for connection in reader.connections:
        assert not connection.faults, told + "; ".join(connection.faults)
        assert connection.order == sorted(set(connection.order)), told + "by id, and once in a connection"
        for number, what in connection.received.items():
            assert truth.said.get(number) == what, told + "only what was committed"
            assert number > connection.start
            assert reader.selector.matches(what[0]), told + "only its channels"
        assert connection.told_by_messages <= connection.missed
        passed = truth.ids(reader.selector, connection.start, connection.reached) - connection.received.keys()
        assert passed <= truth.gone, told + f"skipped {sorted(passed - truth.gone)}"
        # What was gone when the subscription was made is not owed to it.
        least = len(passed - first.gone_at_start)
        most = len(passed - first.gone_before)
        assert least <= connection.missed <= most, told + f"missed {connection.missed}, not {least} to {most}"
    never = owed - reader.received.keys()
    assert never <= truth.gone, told + f"never delivered: {sorted(never - truth.gone)}"
    if reader.ack == "auto":
        every = [number for connection in reader.connections for number in connection.order]
        assert every == sorted(set(every)), told + "once and in order over all connections"
        missed = sum(connection.missed for connection in reader.connections)
        assert missed >= len(never - first.gone_at_start), told + f"told of {missed}, but {len(never)} are missing"
        assert missed <= len(never), told + f"told of {missed}, but only {len(never)} are missing"
