"""Measure the live page under load: how fast it responds to clicks, and whether its memory stays bounded.

    python bench/viewer.py [--rate 500] [--seconds 60]

Another process inserts messages into the file at a steady rate while a real
Chromium shows them, and the script clicks Pause and Resume all the time. The page
measures the time of a click: from its event to the next paint. The script measures
memory after a garbage collection.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import browsers as chromium
from servers import OPEN, Server, wait_for

#: How often the writing process commits, in commits per second.
COMMITS = 50

CLICKS = """
window.clicks = [];
window.tasks = [];
new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) window.tasks.push(duration);
}).observe({ type: "longtask" });
document.addEventListener("click", (event) => {
    const began = event.timeStamp;
    requestAnimationFrame(() => setTimeout(() => window.clicks.push(performance.now() - began)));
}, { capture: true });
"""


def write(path: str, rate: int, seconds: int) -> None:
    """Run in the other process: insert messages like those of a shop, on seven channels."""
    conn = sqlite3.connect(path, timeout=10, isolation_level=None)
    begin = time.monotonic()
    done = 0
    while done < rate * seconds:
        due = min(rate * seconds, int((time.monotonic() - begin) * rate))
        if due > done:
            rows = [
                (f"orders/{n % 7}", json.dumps({"order": n, "lines": [{"sku": f"sku-{n % 100}", "count": n % 9}] * 3}))
                for n in range(done, due)
            ]
            conn.execute("BEGIN IMMEDIATE")
            conn.executemany("INSERT INTO vpubsub (channel, payload) VALUES (?, ?)", rows)
            conn.execute("COMMIT")
            done = due
        time.sleep(1 / COMMITS)
    print(f"wrote {done} messages in {time.monotonic() - begin:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=500, help="messages a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.rate, options.seconds)
        return
    folder = Path(tempfile.mkdtemp(prefix="pubsub-viewer-"))
    path = folder / "data.db"
    sqlite3.connect(path).close()
    server = Server([path], OPEN, folder).start()
    server.publish(channel="orders/0", payload="first")
    total = options.rate * options.seconds + 1
    try:
        with chromium.running() as browser:
            page = browser.new_page()
            page.add_init_script(CLICKS)
            page.goto(server.pubsub)
            page.wait_for_selector('pubsub-viewer[data-status="live"]')
            cdp = page.context.new_cdp_session(page)
            cdp.send("Performance.enable")

            def memory(when: str) -> None:
                cdp.send("HeapProfiler.collectGarbage")
                found = {entry["name"]: entry["value"] for entry in cdp.send("Performance.getMetrics")["metrics"]}
                heap, nodes = found["JSHeapUsedSize"] / 2**20, found["Nodes"]
                print(f"{when}: JS heap {heap:.1f} MiB, {nodes:.0f} nodes, {found['JSEventListeners']:.0f} listeners")

            memory("before")
            command = [sys.executable, __file__, "--write", str(path)]
            command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
            writer = subprocess.Popen(command)
            while writer.poll() is None:
                page.locator(".pubsub-pause").click()
                page.locator(".pubsub-pause").click()
                time.sleep(0.25)
            newest = "document.querySelector('.pubsub-messages tbody tr').dataset.id"
            wait_for(lambda: page.evaluate(newest) == str(total), "the page shows the last message")
            counted = "[...document.querySelectorAll('.pubsub-channels td.col-count')]"
            counted += ".reduce((sum, cell) => sum + Number(cell.textContent.replaceAll(',', '')), 0)"
            wait_for(lambda: page.evaluate(counted) == total, "the page has counted all messages")
            memory("after")
            clicks = sorted(page.evaluate("window.clicks"))
            tasks = page.evaluate("window.tasks")
            print(f"{len(tasks)} tasks of more than 50 ms, longest {max(tasks, default=0):.0f} ms")
            print(f"counted {page.evaluate(counted)} of {total} messages")
            print(
                f"{len(clicks)} clicks: median {statistics.median(clicks):.0f} ms, "
                f"99% {clicks[int(len(clicks) * 0.99)]:.0f} ms, worst {clicks[-1]:.0f} ms"
            )
    finally:
        server.kill()


if __name__ == "__main__":
    main()
