"""Where things stand in the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

#: Programs and data of the tests.
SUPPORT = ROOT / "tests" / "support"

#: The clients of npm, each with its packages.
NODE = ROOT / "tests" / "node"

#: The package for TypeScript.
PACKAGE = ROOT / "clients" / "typescript"
