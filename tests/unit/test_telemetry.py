"""Telemetry: the cases run in a process of their own, in which they install a provider."""

from __future__ import annotations

import subprocess
import sys

from datasette.telemetry_testing import assert_package_never_imports_sdk
from places import ROOT


def test_the_cases_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/support/telemetry_cases.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, "the SDK is installed"


def test_the_sdk_is_not_imported() -> None:
    assert_package_never_imports_sdk("datasette_pubsub.hooks", "datasette_pubsub.broker.broker")
