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
    subprocess.run(
        [*command, "--page", str(page), "catch_up", "filtered", "live_queries", "relay"],
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    measured = json.loads(results.read_text())["catch_up"]["measured"]
    assert set(measured) == {"sse", "connect-json", "connect-proto", "select"}
    assert all(value > 0 for values in measured.values() for value in values)
    assert page.read_text().count(" met |") + page.read_text().count("**missed**") >= 6
