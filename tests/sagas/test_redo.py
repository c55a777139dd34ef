"""Redoing what a branch is owed: the same rows as if it had followed at once, and nobody's change overwritten."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.databases import Pair, fresh_database
from bench.guard import configured_databases
from crosstie.orm.faults import armed
from crosstie.sagas import RedoConflict, SagaBlock, SweepReport, resolve_saga, saga, sweep_sagas
from crosstie.sagas.errors import RowConflict, SagaOperationRefused
from crosstie.sagas.inspection import SagaState, find_saga, find_unfinished
from crosstie.sagas.operation import end_now, overrule
from crosstie.sagas.resolution import Decision, Manner
from crosstie.testing import run_until_quiet
from sagas.bank import FIRST, Account, Posted, Posting, Transfer, balances, create_bank, transfer
from sagas.shop import saga_states

NEW = uuid.UUID(int=9)


class Base(DeclarativeBase):
    """Of models that are not crosstie's."""


class Reading(Base):
    """Columns of many types, under a key that is made here."""

    __tablename__ = "readings"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    taken_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    raw: Mapped[bytes]
    value: Mapped[float]
    kind: Mapped[str] = mapped_column(sa.String(20), server_default="plain")
    details: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    doubled: Mapped[float] = mapped_column(sa.Float, sa.Computed("value * 2", persisted=True))


@pytest.fixture
def bank(configured: Pair) -> Pair:
    """A bank over a pair."""
    create_bank(configured.by_name)
    return configured


def left_owing(block: Callable[[SagaBlock], object]) -> SagaBlock:
    """A saga whose process has gone after home's commit."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with (
        armed("forward.home-committed", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("transfer", recover="forward", home="default", expiry_s=-1) as s,
    ):
        Transfer(amount=Decimal(1)).save()
        block(s)
    return s


def shown(s: SagaBlock) -> SagaState:
    """All that the databases have of it."""
    found = find_saga(s.saga_id)
    assert found is not None
    return found


def test_a_redone_branch_is_as_one_that_followed_at_once(bank: Pair) -> None:
    """To the last column, versions included: the same block, once with a crash and once without."""
    with saga("transfer", recover="forward", home="default"):
        Transfer(amount=Decimal(1)).save()
        transfer()
    expected = balances(bank.by_name)["accounts"], balances(bank.by_name)["postings"]
    for table in ("accounts", "postings"):
        bank.second.execute(f"DELETE FROM {table}")
    assert sweep_sagas("default").settled == 1
    for number, name in enumerate(["ann", "bob", "closed"], start=1):
        Account(id=number, name=name, balance=Decimal(100)).save()
    Posting(id=FIRST, text="first").save()

    left_owing(lambda _: transfer())
    assert sweep_sagas("default").settled == 1

    assert (balances(bank.by_name)["accounts"], balances(bank.by_name)["postings"]) == expected


def test_rows_of_plain_sqlalchemy_are_redone_with_all_their_types(bank: Pair) -> None:
    """Also what the server filled in, and but for generated columns, which it generates again."""
    engine = sa.create_engine(bank.second.url)
    Base.metadata.create_all(engine)
    engine.dispose()

    def write(s: SagaBlock) -> None:
        session = s.session("secondary")
        now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
        session.add(Reading(taken_at=now, raw=b"\x00\xff'", value=0.1, details={"a": [1, None, "ü"]}))
        session.flush()
        connection = s.connection("secondary")
        rows.append(connection.execute(sa.select(Reading.__table__)).one())

    rows: list[Any] = []
    left_owing(write)
    assert bank.second.scalar("SELECT count(*) FROM readings") == 0
    assert sweep_sagas("default").settled == 1

    engine = sa.create_engine(bank.second.url)
    with engine.connect() as connection:
        assert connection.execute(sa.select(Reading.__table__)).one() == rows[0]
    engine.dispose()
    assert (rows[0].kind, rows[0].doubled) == ("plain", 0.2)


def test_events_of_a_branch_are_published_by_its_redo(bank: Pair) -> None:
    """Once, and after the rows that they tell of."""
    bank.second.execute("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 'bank.posted', 1)")

    def write(_: SagaBlock) -> None:
        Posting(id=NEW, text="new").save()
        Posted(text="one").with_headers({"h": "1"}).publish("secondary")
        Posted(text="two").publish("secondary")

    s = left_owing(write)
    assert bank.second.rows("SELECT * FROM crosstie_outbox") == []
    for _ in range(2):
        sweep_sagas("default")
    record = next(one for one in shown(s).records if one.role == "home")
    uids = [(event[0],) for entry in record.undo if entry["op"] == "publish" for event in entry["events"]]
    assert bank.second.rows("SELECT uid FROM crosstie_outbox ORDER BY id") == uids

    found = bank.second.rows("SELECT payload, headers, saga_id FROM crosstie_outbox ORDER BY id")
    assert found == [('{"text":"one"}', '{"h":"1"}', None), ('{"text":"two"}', "{}", None)]


# -- what others have done meanwhile -------------------------------------------------------------------------


def _update(_: SagaBlock) -> None:
    Account.find(1).update(note="mine")


def _delete(_: SagaBlock) -> None:
    Account.find(3).delete()


def _insert(_: SagaBlock) -> None:
    Posting(id=NEW, text="mine").save()


def _upsert(_: SagaBlock) -> None:
    Posting(id=FIRST, text="mine").upsert(on=["id"])


def _increment(_: SagaBlock) -> None:
    Posting.find(FIRST).increment(counted=2_000_000_000)


_KEY = {"sqlite": f"'{NEW.hex}'", "postgresql": f"'{NEW}'", "mariadb": f"'{NEW}'"}
CONFLICTS: dict[str, tuple[Callable[[SagaBlock], None], Callable[[], object], str, str]] = {
    "an update": (_update, lambda: Account.find(1).update(note="theirs"), "changed", "Account.find(1).note"),
    "a delete": (_delete, lambda: Account.find(3).update(note="theirs"), "changed", "Account.find(3).note"),
    "an insert": (_insert, lambda: Posting(id=NEW, text="theirs").save(), "constraint", "Posting.find(NEW).text"),
    "an upsert": (
        *(_upsert, lambda: Posting.find(FIRST).update(text="theirs")),
        *("changed", "Posting.find(FIRST).text"),
    ),
}


@pytest.fixture(params=CONFLICTS)
def conflict(request: pytest.FixtureRequest, bank: Pair) -> tuple[SagaBlock, str, str]:
    """A saga that owes a write, and somebody's change of that row; what the note says, and where to look."""
    write, change, note, look = CONFLICTS[request.param]
    s = left_owing(write)
    change()
    return s, note, look


def look_at(expression: str) -> object:
    """What is in the row now; None where it is gone."""
    owner, column = expression.rsplit(".", 1)
    found = {"Account.find(1)": (Account, 1), "Account.find(3)": (Account, 3)} | {
        "Posting.find(NEW)": (Posting, NEW),
        "Posting.find(FIRST)": (Posting, FIRST),
    }
    model, key = found[owner]
    record = model.find_by(id=key)
    return None if record is None else getattr(record, column)


def test_a_row_that_somebody_has_changed_is_not_overwritten(bank: Pair, conflict: tuple[SagaBlock, str, str]) -> None:
    """The redo is quarantined with everything kept, and sweeps leave it alone."""
    s, note, look = conflict

    assert sweep_sagas("default") == SweepReport(quarantined=1)
    assert sweep_sagas("default") == SweepReport()

    assert look_at(look) == "theirs"
    assert saga_states(bank.by_name) == {"default": ["owed"], "secondary": []}
    (found,), _ = find_unfinished()
    assert (found.quarantined, list(found.owed)) == (["secondary"], ["secondary"])
    assert note in str(found.records[0].conflict)
    assert not s.settle(0)
    assert s.owed == ("secondary",)
    assert run_until_quiet().sagas == [s.saga_id]


def test_an_operator_forces_a_redo(bank: Pair, conflict: tuple[SagaBlock, str, str]) -> None:
    """What others wrote to the row is lost; the saga is settled."""
    s, _, look = conflict
    sweep_sagas("default")

    assert overrule(s.saga_id, "secondary", Manner.FORCED).finished

    assert look_at(look) in {"mine", None}
    assert saga_states(bank.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_an_operator_skips_a_redo(bank: Pair, conflict: tuple[SagaBlock, str, str]) -> None:
    """The row stays as others have left it, the branch never gets its writes, and the saga is settled."""
    s, _, look = conflict
    sweep_sagas("default")

    assert overrule(s.saga_id, "secondary", Manner.KEPT).finished

    assert look_at(look) == "theirs"
    assert saga_states(bank.by_name) == {"default": ["committed"], "secondary": ["refused"]}
    with pytest.raises(SagaOperationRefused, match="nothing to undo or redo"):
        overrule(s.saga_id, "secondary", Manner.FORCED)


def test_a_redo_succeeds_once_the_row_is_put_right(bank: Pair) -> None:
    """An operator's retry tries again as it is; a hint of the doorbell does, too."""
    s = left_owing(_insert)
    Posting(id=NEW, text="theirs").save()
    assert sweep_sagas("default").quarantined == 1
    assert end_now(s.saga_id).quarantined.keys() == {"secondary"}
    assert shown(s).quarantined == ["secondary"]

    bank.second.execute("DELETE FROM postings WHERE text = 'theirs'")

    assert resolve_saga(s.saga_id, "default").settled == 1
    assert Posting.find(NEW).text == "mine"
    assert end_now(s.saga_id).decision is Decision.COMMITTED
    assert shown(s).quarantined == []


def test_what_a_column_cannot_hold_is_quarantined(bank: Pair) -> None:
    """An increment does not care who else has added; but the sum may be refused, and no retry mends that."""
    if bank.second.kind == "sqlite":
        bank.second.execute(
            "CREATE TRIGGER crosstie_deleted_limit BEFORE UPDATE ON postings WHEN NEW.counted > 2147483647"
            " BEGIN SELECT RAISE(ABORT, 'out of range'); END"
        )
    if bank.second.kind == "mariadb":
        bank.second.execute("ALTER TABLE postings ADD CONSTRAINT few CHECK (counted <= 2147483647)")
    if bank.second.kind == "postgresql":
        bank.second.execute("ALTER TABLE postings ALTER counted TYPE integer")
    s = left_owing(_increment)
    Posting.find(FIRST).increment(counted=1_000_000_000)

    assert sweep_sagas("default") == SweepReport(quarantined=1)

    assert Posting.find(FIRST).counted == 1_000_000_000
    with pytest.raises(RowConflict, match="refuses"):
        overrule(s.saga_id, "secondary", Manner.FORCED)
    assert overrule(s.saga_id, "secondary", Manner.KEPT).finished


def test_what_a_constraint_refuses_at_the_commit_is_quarantined(tmp_path: Path) -> None:
    """PostgreSQL alone checks some no sooner."""
    with ExitStack() as stack:
        home = stack.enter_context(fresh_database("sqlite", tmp_path))
        pair = Pair(home, stack.enter_context(fresh_database("postgresql", tmp_path)))
        stack.enter_context(configured_databases(pair))
        create_bank(pair.by_name)
        pair.second.execute("ALTER TABLE postings ADD CONSTRAINT once UNIQUE (text) DEFERRABLE INITIALLY DEFERRED")
        s = left_owing(_insert)
        Posting(text="mine").save()

        assert sweep_sagas("default") == SweepReport(quarantined=1)

        assert "a constraint refuses the redo" in str(shown(s).records[0].conflict)
        assert Posting.find_all().count() == 2


def test_increments_conflict_with_nobody(bank: Pair) -> None:
    """Between home's commit and the redo, others have added to the row, and changed the rest of it."""
    left_owing(lambda _: Posting.find(FIRST).increment(counted=3))
    posting = Posting.find(FIRST)
    posting.increment(counted=4)
    posting.update(text="theirs")

    assert sweep_sagas("default").settled == 1

    assert (Posting.find(FIRST).counted, Posting.find(FIRST).text) == (7, "theirs")


def test_an_increment_of_a_row_that_is_gone_is_a_conflict(bank: Pair) -> None:
    """Forced, it passes over the row."""
    s = left_owing(lambda _: Posting.find(FIRST).increment(counted=3))
    bank.second.execute("DELETE FROM postings")
    assert sweep_sagas("default").quarantined == 1

    assert overrule(s.saga_id, "secondary", Manner.FORCED).finished


def test_a_conflict_in_a_column_that_is_gone_is_told(bank: Pair) -> None:
    """A migration has come between home's commit and the redo."""
    s = left_owing(_insert)
    bank.second.execute("ALTER TABLE postings RENAME COLUMN text TO body")

    assert sweep_sagas("default").quarantined == 1

    assert "no longer has the column(s) text" in str(shown(s).records[0].conflict)


def test_a_redo_conflict_tells_table_key_and_images(bank: Pair) -> None:
    """For the operator; the message has no values of rows."""
    s = left_owing(_update)
    Account.find(1).update(note="private")
    sweep_sagas("default")

    (found,) = shown(s).records
    assert found.conflict is not None
    told = found.conflict["branches"]["secondary"]
    assert (told["table"], [str(value) for value in told["key"].values()]) == ("accounts", ["1"])
    assert (told["expected"]["note"], told["found"]["note"]) == (None, "private")
    assert "private" not in found.conflict["conflict"]
    assert RedoConflict.code == "saga.redo-conflict"
