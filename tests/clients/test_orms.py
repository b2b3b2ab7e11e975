"""The Python ORMs of docs/orm.md: its examples, run as they stand, with a live subscriber beside each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import django
import orms
import pytest
from orms import Shop, check, examples, run

PYTHON = [sys.executable, "-W", "error"]
#: The end of a program: from 3.13 on, Python warns of a connection that is still open.
CLOSE = {"sqlalchemy": "\nengine.dispose()\n", "sqlmodel": "\nengine.dispose()\n", "peewee": "\ndb.close()\n"}
CLIENTS = ["django", "sqlalchemy", "sqlmodel", "peewee"]

#: The rest of a Django project.
SETTINGS = """
from pathlib import Path

BASE_DIR = Path(__file__).parent
INSTALLED_APPS = ["shop"]
USE_TZ = True
"""
SET_UP = "import django\n\ndjango.setup()\n"

DJANGO = """
import json
from datetime import UTC, datetime, timedelta

from django.db import DatabaseError, models, transaction
from shop.models import Message, User

report = {}


def attempt(name, function):
    try:
        with transaction.atomic():
            User.objects.create(email="never")
            report[name] = function()
            raise DatabaseError("rolled back")
    except Exception as error:
        report.setdefault(name, f"{type(error).__name__}: {error}")


attempt("rollback", lambda: Message.objects.create(channel="orders", payload="never").pk)
attempt("again", lambda: Message.objects.create(channel="orders", payload="never", key="order-8").pk)
attempt("update", lambda: Message.objects.get(pk=4).save())
attempt("delete", lambda: Message.objects.filter(pk=4).delete())

# What the page says beside that.
stored = Message.objects.get(pk=4)
hour = timedelta(hours=1)
assert stored.created_at.tzinfo is not None
assert Message.objects.filter(created_at__gt=stored.created_at - hour).count() == Message.objects.count()
assert not Message.objects.filter(created_at__gt=datetime.now(UTC) + hour).exists()
assert Message.objects.filter(created_at=stored.created_at, pk=4).exists()
assert Message.objects.get_or_create(channel="orders", key="order-8", defaults={"payload": "x"}) == (
    Message.objects.get(pk=6), False,
)


try:
    with transaction.atomic():
        Message.objects.bulk_create([Message(channel="orders", payload="never", key=key) for key in ("order-8", "k")])
except AssertionError:
    report["bulk"] = "refused"
assert report.pop("bulk") == "refused"


class Plain(models.Model):
    channel = models.TextField()
    payload = models.TextField()
    created_at = models.DateTimeField(null=True)
    key = models.TextField(null=True)

    class Meta:
        app_label = "shop"
        managed = False
        db_table = "vpubsub"


class Now(models.Model):
    channel = models.TextField()
    payload = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "shop"
        managed = False
        db_table = "vpubsub"


attempt("auto_now_add", lambda: Now.objects.create(channel="orders", payload="never").pk)
assert report.pop("auto_now_add") == "IntegrityError: created_at must be UTC like 2026-01-31T12:00:00.000Z"
# Of the same day, whatever time it is: with another day, it would compare rightly by chance.
evening = stored.created_at.replace(hour=23, minute=59, second=59, microsecond=999_999)
assert Plain.objects.filter(created_at__gt=evening).exists(), "it compares wrongly"
with transaction.atomic():
    one = Plain.objects.create(channel="other", payload="x")
    two, three = Message.objects.bulk_create([Message(channel="other", payload=text) for text in "yz"])
    given = Message.objects.create(channel="other", payload="x", created_at=datetime(2026, 1, 31, tzinfo=UTC))
    assert (two.pk, three.pk, given.pk) == (one.pk + 1, one.pk + 2, one.pk + 3)
    assert one.created_at is None
    one.refresh_from_db()
    assert one.created_at is not None
    assert Message.objects.values_list("created_at", flat=True).get(pk=given.pk) == datetime(2026, 1, 31, tzinfo=UTC)
    transaction.set_rollback(True)
print(json.dumps(report))
"""

SQLALCHEMY = """
import json

report = {}


def attempt(name, function):
    with Session(engine) as session:
        session.add(User(email="never"))
        session.flush()
        try:
            report[name] = function(session)
            session.flush()
        except Exception as error:
            report[name] = f"{type(error).__name__}: {error}"
        session.rollback()


def add(session, **values):
    message = Message(channel="orders", payload="never", **values)
    session.add(message)
    session.flush()
    assert len(message.created_at) == 24
    return message.id


def change(session):
    session.get(Message, 4).payload = "changed"


attempt("rollback", lambda session: add(session))
attempt("again", lambda session: add(session, key="order-8"))
report["again"] = report["again"].partition(":")[0]
attempt("update", change)
attempt("delete", lambda session: session.delete(session.get(Message, 4)))
print(json.dumps(report))
"""

PEEWEE = """
import json

from peewee import PeeweeException

report = {}


def attempt(name, function):
    try:
        with db.atomic():
            user = User.create(email="never")
            report[name] = function(user)
            raise PeeweeException("rolled back")
    except PeeweeException as error:
        report.setdefault(name, str(error))


attempt("rollback", lambda user: Message.create(channel="orders", payload="never").id)
attempt("again", lambda user: Message.create(channel="orders", payload="never", key="order-8").id == user.id)
attempt("update", lambda user: Message.update(payload="changed").where(Message.id == 4).execute())
attempt("delete", lambda user: Message.delete().where(Message.id == 4).execute())
db.create_tables([Message, User])
print(json.dumps(report))
"""


#: What a migration would alter, without what the page says and with it.
ALEMBIC = """
import json

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

for options in ({}, {"include_object": include_object}):
    with engine.connect() as conn:
        found = repr(compare_metadata(MigrationContext.configure(conn, opts=options), Base.metadata))
        names = conn.scalars(text("SELECT name FROM sqlite_master ORDER BY name"))
        print(json.dumps([name for name in names if f"'{name}'" in found]))
Base.metadata.create_all(engine)
"""


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Shop]]:
    with orms.shops(tmp_path_factory.mktemp("orms"), CLIENTS) as found:
        yield found


def schema_of(shop: Shop) -> list[tuple[str, str]]:
    """All that is in the file, but what belongs to Django's migrations."""
    return shop.rows("SELECT name, sql FROM sqlite_master WHERE name <> 'django_migrations' ORDER BY name")


def test_django(shops: dict[str, Shop]) -> None:
    shop, blocks = shops["django"], examples("django")
    assert list(blocks) == ["settings.py", "shop/models.py", "transaction", "once"]
    (shop.folder / "shop").mkdir()
    (shop.folder / "shop" / "__init__.py").touch()
    (shop.folder / "settings.py").write_text(SETTINGS + blocks["settings.py"])
    (shop.folder / "shop" / "models.py").write_text(blocks["shop/models.py"])
    (shop.folder / "first.py").write_text(SET_UP + blocks["transaction"] + blocks["once"])
    (shop.folder / "second.py").write_text(SET_UP + blocks["once"] + DJANGO)

    before = schema_of(shop)
    manage = (
        "import django\nfrom django.core.management import call_command\n\ndjango.setup()\n"
        'call_command("check", fail_level="WARNING", verbosity=0)\n'
        'call_command("makemigrations", "shop", verbosity=0)\n'
        'call_command("migrate", verbosity=0)\n'
    )
    environment = {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(shop.folder)}
    run([*PYTHON, "-c", manage], shop.folder, **environment)
    assert 'db_table": "vpubsub"' in (shop.folder / "shop/migrations/0001_initial.py").read_text().replace("'", '"')
    assert schema_of(shop) == before, "migrations leave the log alone"

    again = None if django.VERSION >= (6,) else "TypeError: 'NoneType' object is not iterable"
    check(shop, [*PYTHON, "first.py"], [*PYTHON, "second.py"], "6", again, **environment)


@pytest.mark.parametrize(
    ("client", "more", "again"),
    [
        ("sqlalchemy", SQLALCHEMY, "FlushError"),
        ("sqlmodel", SQLALCHEMY, "FlushError"),
        ("peewee", PEEWEE, True),
    ],
)
def test_other_orms(shops: dict[str, Shop], client: str, more: str, again: object) -> None:
    shop, blocks = shops[client], examples(client)
    assert list(blocks)[:3] == ["models", "transaction", "once"]
    (shop.folder / "first.py").write_text(blocks["models"] + blocks["transaction"] + blocks["once"] + CLOSE[client])
    (shop.folder / "second.py").write_text(blocks["models"] + blocks["once"] + more + CLOSE[client])
    before = schema_of(shop)
    check(shop, [*PYTHON, "first.py"], [*PYTHON, "second.py"], "None", again)
    assert schema_of(shop) == before


def test_alembic_leaves_the_log_alone(shops: dict[str, Shop]) -> None:
    shop, blocks = shops["sqlalchemy"], examples("sqlalchemy")
    (shop.folder / "alembic_diff.py").write_text(blocks["models"] + blocks["alembic"] + ALEMBIC + CLOSE["sqlalchemy"])
    without, with_it = (json.loads(line) for line in run([*PYTHON, "alembic_diff.py"], shop.folder))
    assert {"pubsub_subscriptions", "_sqlite_migrations", "vpubsub", "vpubsub_key"} <= set(without)
    assert with_it == ["users"], "the types of its columns differ"


def test_every_client_of_the_page_is_run() -> None:
    assert orms.clients() == {*CLIENTS, *orms.NODE_CLIENTS}
