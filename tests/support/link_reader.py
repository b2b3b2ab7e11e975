"""A subscriber in a process of its own that reads as fast as it can, and connects again whenever its stream ends.

``link_reader.py HOST PORT sse|connect LOG``: writes each message id into the log as soon as it has the message, and a
line ``connected`` for each connection. It reads without a time limit: a link that is silent looks like one that has
nothing to say.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import time

IDS = {"sse": re.compile(rb"^id: (\d+)\ndata: .*\n\n", re.MULTILINE), "connect": re.compile(rb'\{"messageId":"(\d+)"')}


def read(host: str, port: int, edge: str, log: int) -> None:
    with socket.create_connection((host, port), timeout=5) as sock:
        if edge == "sse":
            path = "/data/-/pubsub/-/stream?channel=a&subscription=s"
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        else:
            message = json.dumps({"dbName": "data", "channel": "a", "subscriptionName": "s"}).encode()
            body = struct.pack(">BI", 0, len(message)) + message
            head = f"POST /db.v1.DbService/Subscribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            sock.sendall(f"{head}Content-Type: application/connect+json\r\n\r\n".encode() + body)
        data = b""
        while b"\r\n\r\n" not in data:
            part = sock.recv(1 << 16)
            if not part:
                return
            data += part
        head_bytes, data = data.split(b"\r\n\r\n", 1)
        if b" 200 " not in head_bytes.split(b"\r\n", 1)[0]:
            return
        os.write(log, b"connected\n")
        sock.settimeout(None)
        body = b""
        while True:
            # Whole chunks, then whole frames.
            at = 0
            while found := re.match(rb"([0-9a-f]+)\r\n", data[at : at + 20]):
                begin, size = at + found.end(), int(found[1], 16)
                if size == 0 or len(data) < begin + size + 2:
                    break
                body += data[begin : begin + size]
                at = begin + size + 2
            data = data[at:]
            whole = len(body)
            if edge == "sse":
                whole = body.rfind(b"\n\n") + 2 if b"\n\n" in body else 0
            ids = IDS[edge].findall(body[:whole])
            body = body[whole:]
            if ids:
                os.write(log, b"\n".join(ids) + b"\n")
            part = sock.recv(1 << 18)
            if not part:
                return
            data += part


def main() -> None:
    host, port, edge, name = sys.argv[1:]
    log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        try:
            read(host, int(port), edge, log)
        except OSError:
            pass
        time.sleep(0.2)


main()
