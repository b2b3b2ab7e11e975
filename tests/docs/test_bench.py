"""The measurements run, at tiny sizes. No number decides anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from places import ROOT


def test_measurements_run_and_make_a_page(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    command = [sys.executable, "bench/run.py", "--tiny", "--dir", str(tmp_path), "--results", str(results)]
    done = subprocess.run(
        [*command, "--page", str(page), "catch_up", "filtered", "mixed", "live_queries", "relay"],
        cwd=ROOT,
        check=True,
        timeout=240,
        stdout=subprocess.PIPE,
        text=True,
    )
    measured = json.loads(results.read_text())["catch_up"]["measured"]
    assert set(measured) == {"sse", "connect-json", "connect-proto", "select"}
    assert all(value > 0 for values in measured.values() for value in values)
    text = page.read_text()
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert "### Live queries" in titles
    assert "### Fan-out" not in titles, "a section of which nothing was measured"
    assert titles[-1] == "## Limits"
    assert text.count(" messages/s |") == 3
    assert "missed" not in text
    told = [line for line in done.stdout.splitlines() if line.startswith(("met ", "missed "))]
    assert sum("one subscriber that catches up" in line for line in told) == 3
