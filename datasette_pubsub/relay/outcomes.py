"""How a relay, a follower or an import ends, or has to begin again."""

from __future__ import annotations


class Refused(Exception):
    """It cannot go on before somebody changes something; the text says what. Exit code 1."""


class TryAgain(Exception):
    """It cannot go on now, but it may later; the text says why. Exit code 75 (``EX_TEMPFAIL`` of sysexits.h)."""


class Silent(TryAgain):
    """The server gives no answer: it may be gone, or it does not permit the question."""


class Locked(TryAgain):
    """Another program is writing to the file."""


class Replaced(TryAgain):
    """The file at the path is another one now, or none: only a new process can open it."""


class NoJetStream(TryAgain):
    """Nobody answers for JetStream: it is turned off, or the servers that have it are not reached yet."""


class Unmatched(Exception):
    """The stream has another sequence than was expected: look again where it is."""


class AlreadyThere(Exception):
    """There is a stream of this name, with other settings; perhaps somebody else has just made it."""
