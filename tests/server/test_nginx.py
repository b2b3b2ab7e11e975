"""Behind a real nginx with its defaults: responses are buffered, HTTP/1.0 to the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import browsers as chromium
import httpx
import pytest
from browsers import Watched, first, payloads, status
from servers import DEADLINE, OPEN, Server, free_port, wait_for

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")

pytestmark = [*chromium.NEEDED, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]

#: Nothing but where things are; the defaults of proxying stay.
CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /live/ {{ proxy_pass http://127.0.0.1:{backend}; }}
    }}
}}
"""


def test_messages_pass_at_once_and_a_restart_is_got_over(
    serve: Callable[..., Server], watched: Watched, tmp_path: Path
) -> None:
    server = serve(config={**OPEN, "settings": {"base_url": "/live/"}})
    port = free_port()
    (tmp_path / "nginx.conf").write_text(CONFIG.format(folder=tmp_path, port=port, backend=server.port))
    command = [str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path), "-e", str(tmp_path / "error.log")]
    nginx = subprocess.Popen(command)
    try:
        wait_for(lambda: (tmp_path / "nginx.pid").exists(), "nginx runs")
        page = watched.open(f"http://127.0.0.1:{port}/live/data/-/pubsub")

        def publish(text: str) -> None:
            address = f"{server.url}/live/data/-/pubsub/-/publish"
            assert httpx.post(address, json={"channel": "a", "payload": text}).status_code == 200

        # One small message at a time: nothing that comes after pushes it through a buffer.
        for text in ("one", "two", "three"):
            publish(text)
            first(page, text)
        server.kill()
        # nginx answers 502 meanwhile, which would make an EventSource of the browser's give up.
        status(page, re.compile("^Reconnecting: the server answers 502|^Reconnecting: the server refuses"))
        server.start()
        status(page, "Live")
        publish("four")
        first(page, "four")
        assert payloads(page) == ["four", "three", "two", "one"]
    finally:
        nginx.terminate()
        nginx.wait(DEADLINE)
