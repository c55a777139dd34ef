"""Relations and conditions over a hundred thousand keys: one statement each, and work that grows with their number."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar

import pytest
from pydantic import Field

from bench.databases import TestDatabase, Trio
from crosstie.orm import ActiveRecord, keyset
from crosstie.orm.errors import InvalidQuery
from crosstie.orm.field import Column, IntegerPKMixin
from crosstie.orm.keyset import divided
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.orm.statement_log import logged_statements
from orm.club import Membership, Person, create_club, seed_club

MANY = 100_000
NUMBERS = f"""
WITH d(i) AS ({" UNION ALL ".join(f"SELECT {digit}" for digit in range(10))})
SELECT e.i * 10000 + f.i * 1000 + g.i * 100 + h.i * 10 + k.i + 1 AS i
FROM d AS e CROSS JOIN d AS f CROSS JOIN d AS g CROSS JOIN d AS h CROSS JOIN d AS k
"""


def fill(database: TestDatabase, table: str, columns: str, values: str) -> None:
    """A row for each number from 1 to MANY."""
    database.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM ({NUMBERS}) AS n")


@pytest.fixture
def crowd(configured_trio: Trio) -> Trio:
    """As many people as memberships as teams, one of each for each number, each table in another database."""
    create_club()
    fill(configured_trio.first, "people", "id, name", "n.i, 'x'")
    fill(configured_trio.second, "memberships", "id, person_id, team_id", "n.i, n.i, n.i")
    fill(configured_trio.third, "teams", "id, name, rank", "n.i, 'x', 0")
    return configured_trio


def test_a_hundred_thousand_keys_are_loaded_over_three_databases(crowd: Trio) -> None:
    """One statement for each table, and ten times the keys do not cost a hundred times the time."""
    spent_s = {}
    for count in (MANY // 10, MANY):
        begin = time.process_time()
        with logged_statements() as log:
            people = Person.find_all().where(Person.c.id <= count).with_("teams").with_count("memberships").all()
        assert log.by_database == {"default": 1, "secondary": 2, "tertiary": 1}
        assert sum(person.memberships.count() for person in people) == count
        assert all([team.id for team in person.teams()] == [person.id] for person in people)
        spent_s[count] = time.process_time() - begin
    assert spent_s[MANY] < 40 * spent_s[MANY // 10] + 1


def test_conditions_take_a_hundred_thousand_keys_of_another_database(crowd: Trio) -> None:
    """Present and absent, read and written, none of them slow."""
    crowd.second.execute("DELETE FROM memberships WHERE person_id % 2 = 0 OR person_id = 1")
    begin = time.perf_counter()
    with logged_statements() as log:
        assert Person.find_all().where_missing("memberships").count() == MANY // 2 + 1
        assert Person.find_all().where_has("memberships").count() == MANY // 2 - 1
        assert Membership.find_all().where_has("person").count() == MANY // 2 - 1
        assert Membership.find_all().where_missing("person").count() == 0
        assert Person.find_all().where_missing("memberships").update_all(name="alone") == MANY // 2 + 1
    assert log.by_database == {"default": 5, "secondary": 5}
    assert Person.find(1).name == "alone"
    assert Person.find(3).name == "x"
    assert time.perf_counter() - begin < 60


class Parcel(ActiveRecord):
    __table_name__ = "parcels"
    __connection__ = "default"

    code: Annotated[bytes, Field(max_length=16), Column(primary_key=True)]

    scans: ClassVar[HasMany[Scan]] = HasMany(foreign_key="code", inverse_of="parcel")


class Scan(IntegerPKMixin, ActiveRecord):
    __table_name__ = "scans"
    __connection__ = "secondary"

    code: Annotated[bytes, Field(max_length=16)]

    parcel: ClassVar[BelongsTo[Parcel]] = BelongsTo(foreign_key="code")


def test_keys_that_are_bytes_have_no_limit_either(configured_trio: Trio) -> None:
    """Of different lengths, with zeros and quotes in them: which SQLite takes as one parameter too."""
    Parcel.create_table()
    Scan.create_table()
    codes = [b"", b"\0", b"\0\0", b"'", b"\\", *(b"\xff%d" % number for number in range(40_000))]
    configured_trio.first.execute_many("INSERT INTO parcels (code) VALUES (%s)", [(code,) for code in codes])
    configured_trio.second.execute_many("INSERT INTO scans (code) VALUES (%s)", [(code,) for code in codes])
    with logged_statements() as log:
        parcels = Parcel.find_all().with_("scans").all()
        assert [[scan.code for scan in parcel.scans()] for parcel in parcels] == [[one.code] for one in parcels]
        scans = Scan.find_all().with_("parcel").all()
        assert all(scan.parcel() is not None for scan in scans)
    assert len(parcels) == len(scans) == len(codes)
    assert log.by_database == {"default": 2, "secondary": 2}
    assert Parcel.find_all().where_missing("scans").count() == 0


def test_a_statement_that_a_server_would_refuse_is_divided(
    configured_trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where values are written into the text of the statement; every record has what one statement gives it."""
    create_club()
    seed_club()
    monkeypatch.setattr(keyset, "STATEMENT_BYTES", 7)
    kinds = [database.kind for database in configured_trio.databases]
    with logged_statements() as log:
        people = Person.find_all().with_("teams").with_count("badges").order_by("id").all()
    assert [[team.name for team in person.teams()] for person in people] == [
        ["team3", "team1", "team2"],
        ["team1"],
        [],
        [],
    ]
    assert [person.badges.count() for person in people] == [3, 1, 0, 0]
    asked = {"sqlite": (2, 3), "postgresql": (2, 3), "mariadb": (4, 6)}
    assert log.by_database == {"default": 1, "secondary": asked[kinds[1]][0], "tertiary": asked[kinds[2]][1]}
    ordered = Person.find_all().with_(teams=lambda teams: teams.order_by("rank"))
    if kinds[2] == "mariadb":
        with pytest.raises(InvalidQuery, match="4 keys of Team are too long for one statement"):
            ordered.all()
    else:
        assert len(ordered.all()) == 4


def test_a_list_that_no_statement_holds_is_refused(
    configured_database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MariaDB would close the connection, as if it were down; the others take lists of any length."""
    Parcel.create_table()
    Parcel(code=b"\0").save()
    monkeypatch.setattr(keyset, "PACKET_BYTES", 200_000)
    sought = Parcel.find_all().where(code=[b"%d" % number for number in range(20_000)])
    if configured_database.kind == "mariadb":
        with pytest.raises(InvalidQuery, match=r"parcels\.code: .* found 20000 values .*: divide the list"):
            sought.count()
    else:
        assert sought.count() == 0
    assert Parcel.find_all().where(code=[b"\0", *(b"%d" % number for number in range(5_000))]).count() == 1


def test_a_list_is_divided_by_the_length_of_its_text() -> None:
    """No value is lost or repeated, none of them is empty, and one that is too long goes alone."""
    assert list(divided([1, 2, 3, 4, 5], 7)) == [[1, 2], [3, 4], [5]]
    assert list(divided(["a" * 10, "b" * 90, "c", "d"], 30)) == [["a" * 10], ["b" * 90], ["c", "d"]]
    assert list(divided([b"\\" * 10, b"x"], 32)) == [[b"\\" * 10], [b"x"]]
    assert list(divided(["é", "é"], 15)) == [["é"], ["é"]]
    assert list(divided([7], 1)) == [[7]]
