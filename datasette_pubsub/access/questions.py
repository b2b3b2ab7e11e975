"""What a live query asks: SQL, a table or view with Datasette's filters, or a stored query.

Each becomes one :class:`~.storage.query.Question`, after Datasette has been asked whether the actor may ask it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource, QueryResource, TableResource
from datasette.utils import InvalidSql, named_parameters, validate_sql_select
from datasette.utils.asgi import Request

from ..compat import questions as pages
from ..core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from ..storage.query import Question, missing_parameters
from .rules import Actor

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.database import Database

#: The longest SQL of a live query, in bytes of UTF-8.
MAX_SQL_BYTES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedQuery:
    """What a subscriber asks for; exactly one of ``sql``, ``table`` and ``query`` (the name of a stored one).

    ``args`` are the parameters of the SQL or of the stored query, or the
    filters of the table as in the URL of its page: values by name, each may
    stand several times. ``key`` names result columns that recognise a row.
    """

    sql: str = ""
    table: str = ""
    query: str = ""
    key: tuple[str, ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    heartbeat_seconds: float | None = field(default=None, compare=False)

    def check(self) -> None:
        """Raise :class:`InvalidArgument` unless exactly one thing is asked, within its limit."""
        if sum(map(bool, (self.sql, self.table, self.query))) != 1:
            raise InvalidArgument("give one of sql, table and query", field="sql")
        if len(self.sql.encode()) > MAX_SQL_BYTES:
            raise InvalidArgument(f"sql is over the limit of {MAX_SQL_BYTES} bytes", field="sql")


async def question_of(datasette: Datasette, request: Request, database: str, asked: AskedQuery) -> Question:
    """The question that is asked, if the actor may ask it now.

    Raises :class:`PermissionDenied`, :class:`NotFound` or :class:`InvalidArgument`.
    """
    asked.check()
    db = datasette.get_database(database)
    if asked.table:
        return await _of_table(datasette, request, db, asked)
    if asked.query:
        return await _of_stored_query(datasette, request, db, asked)
    await _require(datasette, request.actor, "execute-sql", DatabaseResource(database), f"database {database}")
    _check_select(asked.sql)
    return Question(sql=asked.sql, params=_parameters(asked.sql, dict(asked.args)), key=asked.key)


async def _require(datasette: Datasette, actor: Actor, action: str, resource: Any, what: str) -> None:
    if not await datasette.allowed(action=action, resource=resource, actor=actor):
        raise PermissionDenied(f"permission denied: {action} on {what}")


def _check_select(sql: str) -> None:
    try:
        validate_sql_select(sql)
    except InvalidSql as error:
        raise InvalidArgument(f"sql: {error}", field="sql") from None


def _parameters(sql: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    names = named_parameters(sql)
    missing_parameters(names, given)
    return tuple((name, given[name]) for name in sorted(set(names)))


async def _of_stored_query(datasette: Datasette, request: Request, db: Database, asked: AskedQuery) -> Question:
    name = asked.query
    stored = await datasette.get_query(db.name, name)
    if stored is None:
        raise NotFound(f"query not found: {name}")
    resource = QueryResource(db.name, name)
    await _require(datasette, request.actor, "view-query", resource, f"query {name} of database {db.name}")
    if stored.is_write:
        raise FailedPrecondition(f"query {name} writes: a live query only reads", field="query")
    if not stored.is_trusted:
        await _require(datasette, request.actor, "execute-sql", DatabaseResource(db.name), f"database {db.name}")
    given: dict[str, Any] = dict(asked.args)
    given.update(await pages.magic_parameters(datasette, request, stored.sql))
    return Question(sql=stored.sql, params=_parameters(stored.sql, given), key=asked.key, own_sql=False)


async def _of_table(datasette: Datasette, request: Request, db: Database, asked: AskedQuery) -> Question:
    table = asked.table
    await _require(
        datasette, request.actor, "view-table", TableResource(db.name, table), f"{table} of database {db.name}"
    )
    if not (await db.table_exists(table) or await db.view_exists(table)):
        raise NotFound(f"table not found: {table}")
    try:
        found = await pages.table_query(datasette, request, db, table, asked.args)
    except pages.Refused as error:
        raise InvalidArgument(f"table: {error}", field="table") from None
    if found is None:
        raise FailedPrecondition("this version of Datasette does not tell the SQL of a table's page", field="table")
    key = asked.key or tuple(found.key)
    return Question(
        sql=found.sql,
        params=tuple(sorted(found.params.items())),
        key=key,
        rows=found.rows,
        count_sql=found.count_sql,
        own_sql=False,
    )
