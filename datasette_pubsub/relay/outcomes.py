"""How a relay, a follower or an import ends, or has to begin again."""

from __future__ import annotations


class Refused(Exception):
    """It cannot go on before somebody changes something; the text says what. Exit code 1."""


class TryAgain(Exception):
    """It cannot go on now, but it may later; the text says why. Exit code 75 (``EX_TEMPFAIL`` of sysexits.h)."""


class NoJetStream(TryAgain):
    """Nobody answers for JetStream: it is turned off, or the servers that have it are not reached yet."""


class Unmatched(Exception):
    """The stream has another sequence than was expected: look again where it is."""
