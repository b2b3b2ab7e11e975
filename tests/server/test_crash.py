"""What was acknowledged survives kill -9, and reaches a durable subscriber."""

from __future__ import annotations

import threading
from collections.abc import Callable

import httpx
from servers import Server, Sse, wait_for


def test_acknowledged_messages_survive_kill_9(serve: Callable[..., Server]) -> None:
    server = serve()
    server.publish(channel="c", payload="first")
    acknowledged: dict[int, str] = {}
    lock = threading.Lock()

    def publisher(name: int) -> None:
        n = 0
        with httpx.Client(timeout=10) as client:
            while True:
                items = [{"channel": "c", "payload": f"{name} {n + k}"} for k in range(5)]
                try:
                    answer = client.post(f"{server.pubsub}/-/publish", json={"items": items})
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                with lock:
                    acknowledged.update(zip(answer.json()["message_ids"], (i["payload"] for i in items), strict=True))
                n += 5

    threads = [threading.Thread(target=publisher, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(acknowledged) > 500, "some acknowledged publishes")
    server.kill()
    for thread in threads:
        thread.join()
    assert server.rows("PRAGMA integrity_check") == [("ok",)]
    stored = dict(server.rows("SELECT id, payload FROM vpubsub"))
    assert all(stored.get(message_id) == payload for message_id, payload in acknowledged.items())
    server.start()
    url = f"{server.pubsub}/-/stream"
    received: dict[int, str] = {}
    # Explicit acks: what is not acknowledged comes again after a kill in the middle.
    with Sse(url, channel="c", subscription="durable", ack="explicit") as reader:
        half = reader.messages(len(stored) // 2)
        received.update((int(m["messageId"]), m["payload"]) for m in half)
        middle = int(half[-1]["messageId"])
        ack = {"subscription": "durable", "message_id": middle}
        assert httpx.post(f"{server.pubsub}/-/ack", json=ack).json() == {"ok": True, "cursor": middle}
        server.kill()
    server.start()
    with Sse(url, channel="c", subscription="durable", ack="explicit") as reader:
        rest = reader.messages(len(stored) - len(half))
    assert int(rest[0]["messageId"]) > middle
    received.update((int(m["messageId"]), m["payload"]) for m in rest)
    assert received == stored
    assert server.rows("PRAGMA integrity_check") == [("ok",)]
