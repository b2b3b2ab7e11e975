"""Text that is not UTF-8, as SQL tells it apart, against Python's own decoder."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterable

import apsw
import pytest

from datasette_pubsub.storage.utf8_sql import CHARACTERS, invalid_utf8

#: Lead and continuation bytes at the edges of what UTF-8 allows (RFC 3629), ASCII and a control character.
EDGES = bytes.fromhex("01 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 f7 f8 fb fc fd fe ff")

INVALID = {
    "a lone continuation": b"\x80",
    "a lone continuation after a character": "ä".encode() + b"\xa4",
    "a character cut off": b"caf\xc3",
    "three bytes cut off": b"\xe2\x82",
    "four bytes cut off, and text behind": b"\xf0\x9f\x98 x",
    "Latin-1": "Käse".encode("latin-1"),
    "Latin-1, upper case": "ÄÖÜ".encode("latin-1"),
    "Windows-1252": "“quoted”".encode("cp1252"),
    "Shift JIS": "日本語".encode("shift_jis"),
    "overlong A": b"\xc1\x81",
    "overlong slash in three bytes": b"\xe0\x80\xaf",
    "overlong slash in four bytes": b"\xf0\x80\x80\xaf",
    "overlong NUL": b"\xc0\x80",
    "overlong euro sign": b"\xf0\x82\x82\xac",
    "a high surrogate": b"\xed\xa0\x80",
    "a low surrogate": b"\xed\xbf\xbf",
    "CESU-8": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "never a byte of UTF-8": b"\xff\xfe",
    "only the last of 255 bytes": b"x" * 254 + b"\xe4",
    "only the last, behind characters of three bytes": "€".encode() * 84 + b"\x80",
}

VALID = {
    "empty": "",
    "ASCII": "orders/7",
    "control characters": "\x01\t\r\n\x1f\x7f\x80\x9f",
    "the replacement character": "a\ufffdb",
    "what is no character": "\ufffe\uffff\ufdd0\U0001fffe\U0010ffff",
    "a byte order mark": "\ufeffa",
    "the last before and the first behind the surrogates": "\ud7ff\ue000",
    "edges of the lengths": "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
    "combined": "👩‍👩‍👧‍👦 é",
    "255 bytes": "ä" * 127 + "x",
}

Check = Callable[[Iterable[bytes]], list[bool]]


def _checker(execute: Callable[[str, tuple[bytes]], Iterable[tuple[int]]]) -> Check:
    # As in a trigger: of a column, one row after the other.
    sql = f"SELECT {invalid_utf8('NEW.value')} IS TRUE FROM (SELECT CAST(? AS TEXT) AS value) AS NEW"
    return lambda texts: [bool(next(iter(execute(sql, (each,))))[0]) for each in texts]


@pytest.fixture(params=["sqlite3", "apsw"])
def check(request: pytest.FixtureRequest) -> Iterable[Check]:
    """The condition on Python's SQLite, and on a newer one."""
    conn = sqlite3.connect(":memory:") if request.param == "sqlite3" else apsw.Connection(":memory:")
    yield _checker(conn.execute)
    conn.close()


def _is_invalid(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def test_every_kind_of_invalid_text(check: Check) -> None:
    assert all(map(_is_invalid, INVALID.values()))
    found = check(INVALID.values())
    assert dict(zip(INVALID, found, strict=True)) == dict.fromkeys(INVALID, True)
    assert check(b"x \xc3\xa4 " + each + b" y" for each in INVALID.values() if len(each) < 200).count(False) == 0


def test_every_kind_of_valid_text(check: Check) -> None:
    found = check(each.encode() for each in VALID.values())
    assert dict(zip(VALID, found, strict=True)) == dict.fromkeys(VALID, False)


def test_every_code_point(check: Check) -> None:
    """All planes, as many characters in a text as are looked at."""
    points = [chr(each) for each in itertools.chain(range(1, 0xD800), range(0xE000, 0x110000))]
    texts = ["".join(points[n : n + CHARACTERS]).encode() for n in range(0, len(points), CHARACTERS)]
    assert check(texts).count(True) == 0


def test_all_short_texts_of_edge_bytes(check: Check) -> None:
    """Every one of up to three bytes, and many longer ones, as Python's decoder sees them."""
    texts = [bytes(each) for count in (1, 2, 3) for each in itertools.product(EDGES, repeat=count)]
    rng = random.Random(15)
    texts += [bytes(rng.choices(EDGES, k=rng.randint(4, 7))) for _ in range(20_000)]
    found = check(texts)
    assert [text for text, invalid in zip(texts, found, strict=True) if invalid is not _is_invalid(text)] == []
    assert 0 < found.count(False) < len(texts)


def test_it_works_in_a_trigger_and_in_its_condition() -> None:
    conn = sqlite3.connect(":memory:")
    conn.executescript(
        f"""
        CREATE TABLE said (value TEXT COLLATE NOCASE, invalid);
        CREATE TABLE words (value TEXT COLLATE NOCASE);
        CREATE TRIGGER guard BEFORE INSERT ON words WHEN {invalid_utf8("NEW.value")}
        BEGIN SELECT RAISE(ABORT, 'not UTF-8'); END;
        CREATE TRIGGER copy AFTER INSERT ON words
        BEGIN INSERT INTO said SELECT value, {invalid_utf8("value")} FROM (SELECT NEW.value AS value); END;
        """
    )
    conn.execute("INSERT INTO words VALUES ('Käse'), (NULL), ('')")
    with pytest.raises(sqlite3.IntegrityError, match="not UTF-8"):
        conn.execute("INSERT INTO words VALUES ('K' || CAST(x'e4' AS TEXT))")
    assert conn.execute("SELECT * FROM said").fetchall() == [("Käse", 0), (None, 0), ("", 0)]
    conn.close()
