"""How a server describes a column: its real type, sign and collation, whatever the model says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import sqlalchemy as sa

from crosstie.orm.errors import NoSuchTable
from crosstie.orm.integrity.endpoint import Endpoint

__all__ = ["ColumnFacts", "Equality", "column_facts", "is_indexed"]


class Equality(Enum):
    """How wide a text column's own `=` is, as far as is known."""

    IDENTICAL = auto()
    """It holds for the same text only."""
    PADDED = auto()
    """It holds for texts that differ in trailing spaces, too."""
    WIDE = auto()
    """It may ignore case, accents or anything else."""

    def is_wider_than(self, other: Equality) -> bool:
        """Whether it may hold for texts that the other tells apart."""
        return self.value > other.value


@dataclass(frozen=True)
class ColumnFacts:
    """A column's type in the server's words, lower case ("int8", "bigint", "bpchar").

    `length` is the declared length in characters, if any; `charset` and `equality` matter for text only. `digits` is
    how many a decimal without fraction has, None for any other number; `unsigned` is of integers.
    """

    dialect: str
    type_name: str
    length: int | None = None
    charset: str | None = None
    equality: Equality = Equality.WIDE
    digits: int | None = None
    unsigned: bool = False


def column_facts(end: Endpoint) -> ColumnFacts:
    """Ask the server for the column of this end. Raises NoSuchTable, DatabaseUnavailable."""
    database = end.database
    with database.mapped_errors(), database.autocommit.connect() as connection:
        facts = _READERS[database.kind](connection, end)
    if facts is None:
        raise NoSuchTable(
            f"database {end.connection!r} ({database.settings.address()}): expected a column {end.column.name!r} in a "
            f"table {end.table.fullname!r} and found none. Run the migration that adds it, or correct the model."
        )
    return facts


def is_indexed(end: Endpoint) -> bool:
    """Whether an index begins with the column, or with that of its type and this. Raises DatabaseUnavailable."""
    database = end.database
    if end.of_type is not None:
        with database.mapped_errors(), database.autocommit.connect() as connection:
            inspector = sa.inspect(connection)
            indexes = inspector.get_indexes(end.table.name, schema=end.table.schema)
        first_two = [end.of_type.column.name, end.column.name]
        return any(one["column_names"][:2] == first_two or one["column_names"][:1] == first_two[1:] for one in indexes)
    family = "mysql" if database.kind == "mariadb" else database.kind
    with database.mapped_errors(), database.autocommit.connect() as connection:
        where = {
            "table": connection.dialect.identifier_preparer.format_table(end.table),
            "name": end.table.name,
            "schema": end.table.schema or ("main" if family == "sqlite" else None),
            "column": end.column.name,
        }
        statement = sa.text(_INDEXES[family])
        wanted = {name: where[name] for name in statement.compile().params}
        return connection.execute(statement, wanted).first() is not None


_INDEXES: Final = {
    "postgresql": "SELECT 1 FROM pg_index ind JOIN pg_attribute att"
    " ON att.attrelid = ind.indrelid AND att.attnum = ind.indkey[0]"
    " WHERE ind.indrelid = to_regclass(:table) AND att.attname = :column",
    "mysql": "SELECT 1 FROM information_schema.statistics WHERE table_schema = COALESCE(:schema, DATABASE())"
    " AND table_name = :name AND column_name = :column AND seq_in_index = 1",
    "sqlite": "SELECT 1 FROM pragma_table_xinfo(:name, :schema) WHERE lower(name) = lower(:column) AND pk = 1"
    " UNION SELECT 1 FROM pragma_index_list(:name, :schema) list, pragma_index_xinfo(list.name, :schema) part"
    " WHERE part.seqno = 0 AND lower(part.name) = lower(:column)",
}


def _postgresql(connection: sa.Connection, end: Endpoint) -> ColumnFacts | None:
    # A domain is what it is made of.
    row = connection.execute(
        sa.text(
            "SELECT COALESCE(base.typname, own.typname), COALESCE(NULLIF(att.atttypmod, -1), own.typtypmod),"
            " COALESCE(coll.collisdeterministic, true)"
            " FROM pg_attribute att JOIN pg_type own ON own.oid = att.atttypid"
            " LEFT JOIN pg_type base ON base.oid = own.typbasetype AND own.typtype = 'd'"
            " LEFT JOIN pg_collation coll ON coll.oid = att.attcollation"
            " WHERE att.attrelid = to_regclass(:name) AND att.attname = :column AND NOT att.attisdropped"
        ),
        {"name": connection.dialect.identifier_preparer.format_table(end.table), "column": end.column.name},
    ).one_or_none()
    if row is None:
        return None
    type_name, modifier, deterministic = row
    # For character types the modifier is the length plus four bytes of header.
    length = modifier - 4 if type_name in {"bpchar", "varchar"} and modifier >= 4 else None
    plain = {"text": Equality.IDENTICAL, "varchar": Equality.IDENTICAL, "bpchar": Equality.PADDED}
    equality = plain.get(type_name, Equality.WIDE) if deterministic else Equality.WIDE
    # Of a numeric, the modifier is 65,536 times the digits, plus those of the fraction, plus four.
    whole = type_name == "numeric" and modifier is not None and modifier >= 4 and (modifier - 4) % 65536 == 0
    digits = (modifier - 4) // 65536 if whole else None
    return ColumnFacts("postgresql", type_name, length, equality=equality, digits=digits)


def _mysql(connection: sa.Connection, end: Endpoint) -> ColumnFacts | None:
    row = connection.execute(
        sa.text(
            "SELECT data_type, character_maximum_length, character_set_name, collation_name, numeric_precision,"
            " numeric_scale, column_type FROM information_schema.columns"
            " WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name AND column_name = :column"
        ),
        {"schema": end.table.schema, "name": end.table.name, "column": end.column.name},
    ).one_or_none()
    if row is None:
        return None
    type_name, length, charset, collation, precision, scale, column_type = row
    # Even utf8mb4_bin ignores trailing spaces, all but the NO PAD collations do.
    equality = Equality.PADDED if (collation or "").endswith("_bin") else Equality.WIDE
    type_name = type_name.lower()
    return ColumnFacts(
        connection.dialect.name,
        type_name,
        length,
        charset=charset,
        equality=equality,
        digits=int(precision) if type_name == "decimal" and scale == 0 else None,
        unsigned="unsigned" in column_type.lower(),
    )


def _sqlite(connection: sa.Connection, end: Endpoint) -> ColumnFacts | None:
    where = {"name": end.table.name, "schema": end.table.schema or "main", "column": end.column.name}
    row = connection.execute(
        sa.text("SELECT type FROM pragma_table_xinfo(:name, :schema) WHERE lower(name) = lower(:column)"), where
    ).one_or_none()
    if row is None:
        return None
    type_name, _, size = str(row[0]).lower().partition("(")
    digits = size.partition(")")[0].strip()
    # Only the index of a key tells which collation a column has.
    collations = connection.execute(
        sa.text(
            "SELECT part.coll FROM pragma_index_list(:name, :schema) list, pragma_index_xinfo(list.name, :schema) part"
            " WHERE list.origin IN ('pk', 'u') AND part.seqno = 0 AND lower(part.name) = lower(:column)"
        ),
        where,
    ).scalars()
    equality = {"BINARY": Equality.IDENTICAL, "RTRIM": Equality.PADDED}.get(next(iter(collations), ""), Equality.WIDE)
    return ColumnFacts("sqlite", type_name.strip(), int(digits) if digits.isdigit() else None, equality=equality)


_READERS: Final[dict[str, Callable[[sa.Connection, Endpoint], ColumnFacts | None]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "sqlite": _sqlite,
}
