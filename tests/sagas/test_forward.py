"""Forward recovery as its caller sees it: home commits first, branches follow, and what cannot is refused before."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bench.databases import Pair, Trio, fresh_database
from bench.faults import crash_at
from bench.guard import configured_databases
from crosstie.orm import ActiveRecord, ConnectionManager, Tenants, connected_to
from crosstie.orm.faults import armed
from crosstie.orm.field import UUIDMixin
from crosstie.orm.integrity import AuditState
from crosstie.outbox.trigger import PREFIX
from crosstie.sagas import (
    SagaAborted,
    SagaBlock,
    SagaError,
    SagaNotRedoable,
    SagaTimedOut,
    deadline,
    saga,
    sweep_effects,
    sweep_sagas,
)
from crosstie.sagas.inspection import count_sagas, find_leftovers, find_saga, find_unfinished
from crosstie.sagas.touched import touched_keys
from crosstie.workers.audit_sagas import TouchedBySagas
from crosstie.workers.sagas_presentation import saga_document, saga_lines
from integrity.tables import linked
from sagas import till
from sagas.bank import FIRST, Account, Notice, Posted, Posting, Transfer, balances, create_bank, transfer
from sagas.shop import saga_states


@pytest.fixture
def bank(configured: Pair) -> Pair:
    """A bank over a pair."""
    create_bank(configured.by_name)
    return configured


def interrupt() -> None:
    """Leave the saga where it stands, as a crash does, but in this process."""
    raise KeyboardInterrupt


def left_owing(block: Callable[[], object] = transfer, **options: Any) -> SagaBlock:
    """A saga whose process has gone after home's commit."""
    options = {"expiry_s": -1, **options}
    with (
        armed("forward.home-committed", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("transfer", recover="forward", **options) as s,
    ):
        block()
    return s


def test_home_commits_first_and_the_branch_follows(bank: Pair) -> None:
    """Nobody sees a branch's writes before home has decided, and the block ends with all of them there."""
    seen: list[Any] = []

    with (
        armed("forward.home-recorded", lambda: seen.append(balances(bank.by_name))),
        armed("forward.home-committed", lambda: seen.append(balances(bank.by_name))),
        saga("transfer", recover="forward") as s,
    ):
        before = balances(bank.by_name)
        transfer()
        assert {one.text for one in Posting.find_all()} == {"first", "upserted", "upserted over"}

    assert seen[0] == before
    assert len(seen[1]["transfers"]) == 1
    assert {name: rows for name, rows in seen[1].items() if name != "transfers"} == {
        name: rows for name, rows in before.items() if name != "transfers"
    }
    assert s.owed == ()
    assert s.settle(0)
    assert len(balances(bank.by_name)["postings"]) == 3
    assert saga_states(bank.by_name) == {"default": ["owed"], "secondary": ["done"]}
    assert sweep_sagas("default").settled == 1
    assert saga_states(bank.by_name) == {"default": ["committed"], "secondary": ["done"]}
    assert find_leftovers("default", grace_s=0) == find_leftovers("secondary", grace_s=0) == []


def test_an_exception_leaves_nothing_and_no_record(bank: Pair) -> None:
    """As in every saga: nothing was committed."""
    before = balances(bank.by_name)

    with pytest.raises(ZeroDivisionError), saga("transfer", recover="forward"):
        transfer()
        raise ZeroDivisionError

    assert balances(bank.by_name) == before
    assert saga_states(bank.by_name) == {"default": [], "secondary": []}


def test_a_block_that_writes_to_one_database_is_a_plain_commit(bank: Pair) -> None:
    """Whatever it writes."""
    with saga("close", recover="forward"):
        Account(name="eve").save()
        assert Transfer.find_all().count() == 0
    assert Account.find_all().count() == 4
    assert saga_states(bank.by_name) == {"default": [], "secondary": []}


def test_it_sends_no_more_than_backward_recovery(bank: Pair) -> None:
    """Statement by statement: the branch's record is one INSERT, and home's is one."""
    counts: dict[str, list[int]] = {}
    for recover in ("backward", "forward"):
        for number in (10, 20):  # what a process asks once has been asked after the first
            sent = _count_statements()
            with saga("transfer", recover=recover):
                Transfer(amount=Decimal(1)).save()
                Posting(id=uuid.UUID(int=number + len(counts)), text=recover).save()
                Posting.find(FIRST).increment(counted=1)
            counts.setdefault(recover, []).append(sent())

    assert counts["forward"][-1] <= counts["backward"][-1]


def _count_statements() -> Callable[[], int]:
    counted: list[str] = []
    engines = [ConnectionManager.get(name).engine for name in ("default", "secondary")]

    def count(_: Any, __: Any, statement: str, *___: Any) -> None:
        counted.append(statement)

    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", count)
        sa.event.listen(engine, "commit", lambda _: counted.append("COMMIT"))

    def stop() -> int:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", count)
        return len(counted)

    return stop


def test_events_leave_with_home_and_with_the_branch(bank: Pair) -> None:
    """Those of a branch wait for no decision: it has been made by then."""
    for database in bank.databases:
        database.execute("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 'bank.posted', 1)")

    with saga("transfer", recover="forward"):
        Transfer(amount=Decimal(1)).save()
        Posting(text="new").save()
        Posted(text="home").publish()
        Posted(text="branch").publish("secondary")

    found = [database.rows("SELECT saga_id, payload FROM crosstie_outbox") for database in bank.databases]
    assert found == [[(None, '{"text":"home"}')], [(None, '{"text":"branch"}')]]


# -- what a branch takes ------------------------------------------------------------------------------------


def _raw() -> None:
    with saga("inner") as s:
        s.connection("secondary").execute(sa.text("UPDATE postings SET counted = 1"))


def _core() -> None:
    with saga("inner") as s:
        s.connection("secondary").execute(
            sa.insert(Account.__table__), {"name": "core", "balance": 0, "lock_version": 0}
        )


UNSOUND: dict[str, Callable[[], object]] = {
    "whose key the database makes": lambda: Account(name="eve").save(),
    "key the database makes": lambda: Account.bulk_create([Account(name="eve"), Account(name="dan")]),
    "an insert into 'accounts' whose key": _core,
    "raises no version": lambda: Posting.find(FIRST).update(text="changed"),
    "update of 'postings' that raises no version": lambda: (
        Posting.find_all().where(text="first").update_all(text="changed")
    ),
    "which has no version": lambda: Posting.find(FIRST).delete(),
    "textual SQL": _raw,
}


@pytest.mark.parametrize("reason", UNSOUND)
def test_what_cannot_be_redone_soundly_is_refused_before_anything_is_committed(reason: str, bank: Pair) -> None:
    """Where home is another database; the message says what it was, and what else to do."""
    before = balances(bank.by_name)

    with pytest.raises(SagaNotRedoable, match=reason) as refused, saga("transfer", recover="forward", home="default"):
        Transfer(amount=Decimal(1)).save()
        UNSOUND[reason]()

    assert balances(bank.by_name) == before
    assert saga_states(bank.by_name) == {"default": [], "secondary": []}
    for way in ("UUIDMixin", "increment()", "OptimisticLockMixin", "home='secondary'"):
        assert way in str(refused.value)


def test_home_may_write_what_it_likes(bank: Pair) -> None:
    """Its own commit decides. A key that the caller has chosen makes a row of a numbered table fit for a branch."""
    with saga("transfer", recover="forward", home="secondary") as s:
        Transfer(id=77, amount=Decimal(1)).save()
        Posting.find(FIRST).update(text="changed")
        Account(name="eve").save()
        s.connection("secondary").execute(sa.text("UPDATE postings SET counted = 1"))
    assert s.owed == ()
    assert [row[0] for row in balances(bank.by_name)["transfers"]] == [77]


@pytest.mark.parametrize("trigger", [f"{PREFIX}mark", "own"])
def test_triggers_of_the_application_make_their_table_unfit(trigger: str, tmp_path: Path) -> None:
    """A redo would have them fire upon what they have written. Crosstie's own may, and tell again."""
    # On SQLite alone, where a trigger is one statement: of the others, too, only its name is looked at.
    with ExitStack() as stack:
        pair = Pair(*(stack.enter_context(fresh_database("sqlite", tmp_path)) for _ in range(2)))
        stack.enter_context(configured_databases(pair))
        create_bank(pair.by_name)
        pair.second.execute(
            f"CREATE TRIGGER {trigger} AFTER INSERT ON postings BEGIN UPDATE accounts SET note = 'fired'; END"
        )
        if trigger == "own":
            stack.enter_context(pytest.raises(SagaNotRedoable, match="triggers"))
        with saga("transfer", recover="forward", home="default"):
            Transfer(amount=Decimal(1)).save()
            Posting(text="new").save()


def test_a_saga_that_recovers_forward_refuses_what_contradicts_it(bank: Pair) -> None:
    """Row locks, the other way to commit, an unknown way to recover, and an inner saga that wants another end."""
    with pytest.raises(SagaError, match="isolation"):
        saga("x", recover="forward", isolation="locked")
    with pytest.raises(SagaError, match="leave one of them out"):
        saga("x", recover="forward", commit="two_phase")
    with pytest.raises(SagaError, match="expected recover='backward' or 'forward'"):
        saga("x", recover="sideways")  # type: ignore[arg-type]
    with saga("outer"), pytest.raises(SagaError, match="outer one has backward"), saga("in", recover="forward"):
        pytest.fail("it was let in")


# -- nesting, time, effects ---------------------------------------------------------------------------------


def test_an_inner_saga_that_fails_owes_nothing(bank: Pair) -> None:
    """What it did in a branch is taken back, from the log as from the rows; as a decorator, too."""

    @saga("inner", recover="forward")
    def post(number: int, *, fails: bool = False) -> None:
        Posting(id=uuid.UUID(int=number), text="posted").save()
        Posted(text=str(number)).publish("secondary")
        if fails:
            raise ZeroDivisionError

    def block() -> None:
        Transfer(amount=Decimal(1)).save()
        post(5)
        with pytest.raises(ZeroDivisionError):
            post(6, fails=True)
        post(7)

    bank.second.execute("INSERT INTO crosstie_route (route, event_type, lanes) VALUES ('r', 'bank.posted', 1)")
    left_owing(block)
    assert sweep_sagas("default").settled == 1

    assert sorted(str(row[0])[-1] for row in balances(bank.by_name)["postings"]) == ["1", "5", "7"]
    assert bank.second.rows("SELECT payload FROM crosstie_outbox ORDER BY id") == [('{"text":"5"}',), ('{"text":"7"}',)]


def test_a_time_limit_ends_with_the_block(bank: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too late, and nothing is committed; once home may commit, the time does not matter."""
    now = deadline.monotonic()
    monkeypatch.setattr(deadline, "monotonic", lambda: now)
    with pytest.raises(SagaTimedOut), saga("transfer", recover="forward", timeout_s=5):
        transfer()
        monkeypatch.setattr(deadline, "monotonic", lambda: now + 6)
    assert saga_states(bank.by_name) == {"default": [], "secondary": []}

    monkeypatch.setattr(deadline, "monotonic", lambda: now)

    def too_late() -> None:
        monkeypatch.setattr(deadline, "monotonic", lambda: now + 6)

    with armed("forward.home-committed", too_late), saga("transfer", recover="forward", timeout_s=5) as s:
        transfer()
    assert s.owed == ()


@pytest.mark.usefixtures("own_till")
def test_effects_are_decided_with_home(bank: Pair) -> None:
    """They stay if home commits, though the process dies then; and are compensated if the block fails."""
    calls = [
        (armed("forward.home-committed", interrupt), KeyboardInterrupt, ["charge 5 :1"]),
        (crash_at("forward.home-recorded"), SagaAborted, ["charge 5 :1", "charge 5 :1", "refund 5 :1"]),
    ]
    for fault, error, expected in calls:
        with pytest.raises(error), fault, saga("pay", recover="forward", home="default", expiry_s=-1) as s:
            s.call(till.charge, 5, compensate=till.refund)
            Transfer(amount=Decimal(1)).save()
            Posting(text="paid").save()
        sweep_effects("default")
        sweep_sagas("default")
        assert till.lines() == expected
        assert [row[1] for row in balances(bank.by_name)["postings"]].count("paid") == 1


# -- what is shown ------------------------------------------------------------------------------------------


def test_a_saga_that_owes_is_shown_as_such(bank: Pair) -> None:
    """In the list, in full, in figures, and among the leftovers once nobody ends it."""
    s = left_owing()

    (listed,), errors = find_unfinished()
    assert (listed.decision, list(listed.owed), listed.expired, errors) == ("owed", ["secondary"], True, {})
    found = find_saga(s.saga_id)
    assert found is not None
    assert list(found.owed) == ["secondary"]
    lines = "\n".join(saga_lines(found, values=False))
    assert "forward, home default" in lines
    assert "owed to secondary" in lines
    assert "redo in secondary: insert of postings" in lines
    assert "1 event(s) are published" in lines
    document = saga_document(found, values=False)
    assert (document["mode"], document["owed"]) == ("forward", ["secondary"])
    assert "upserted over" not in str(document)
    assert count_sagas(ConnectionManager.get("default"))["owed"] == 1
    assert [one.kind for one in find_leftovers("default", grace_s=0)] == ["unswept"]
    sweep_sagas("default")
    assert find_unfinished() == ([], {})


def test_an_audit_knows_what_is_owed(bank: Pair) -> None:
    """Rows that home refers to, and that are not there yet, until the saga has been settled for long enough."""
    left_owing()
    now = bank.second.scalar("SELECT max(created_at_ms) FROM crosstie_saga") or 0

    owed = touched_keys("secondary", since_ms=2**60)
    assert ("postings", (uuid.UUID(int=2).hex,)) in owed
    assert touched_keys("default", since_ms=2**60) == set()
    sweep_sagas("default")
    assert touched_keys("secondary", since_ms=int(now)) == owed
    assert touched_keys("secondary", since_ms=2**60) == set()


def test_an_audit_reports_no_row_whose_parent_is_owed(configured: Pair) -> None:
    """Home has the child already. A database that cannot be asked may be the home of a saga that owes the parent."""
    world = linked(configured)
    posts, users = world.reference.child.table, world.reference.parent.table

    def interrupted() -> None:
        with saga("inner") as s:
            s.connection("default").execute(sa.insert(posts), {"id": 1, "user_id": 10})
            s.connection("secondary").execute(sa.insert(users), {"id": 10})

    left_owing(interrupted, home="default")
    found = world.audit(suspects=TouchedBySagas())
    assert (found.orphan_rows, found.deferred_rows) == (0, 1)
    away = {"third": {"driver": "postgresql", "host": "127.0.0.1", "port": 1, "database": "nothing"}}
    ConnectionManager.configure(configured.configuration | away)
    assert world.audit(suspects=TouchedBySagas()).state is AuditState.INCOMPLETE
    ConnectionManager.configure(configured.configuration)

    assert sweep_sagas("default").settled == 1

    assert world.audit(suspects=TouchedBySagas()).state is AuditState.OK


def test_three_databases_owe_each_by_itself(configured_trio: Trio) -> None:
    """One branch that is done is not done again."""
    create_bank(configured_trio.by_name)
    with (
        armed("forward.home-committed", lambda: s.transaction("tertiary").end_by_stranger()),
        armed("forward.branch-committed", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("transfer", recover="forward", expiry_s=-1) as s,
    ):
        transfer(configured_trio.by_name)
    found = find_saga(s.saga_id)
    assert found is not None
    assert list(found.owed) == ["tertiary"]
    assert (Posting.find_all().count(), Notice.find_all().count()) == (3, 1)

    assert sweep_sagas("default").settled == 1

    assert (Posting.find_all().count(), Notice.find_all().count()) == (3, 2)


class Memo(UUIDMixin, ActiveRecord):
    """Lives in the database of the tenant."""

    __table_name__ = "memos"
    __connection__ = Tenants("tenant_{tenant}")

    text: str


def test_what_is_owed_to_a_tenant_is_redone_without_one(configured: Pair) -> None:
    """The worker knows no tenant: home's record names the database."""
    ConnectionManager.configure({"default": configured.first.config, "tenant_a": configured.second.config})
    Transfer.create_table()
    with connected_to(tenant="a"):
        Memo.create_table()
        left_owing(lambda: (Transfer(amount=Decimal(1)).save(), Memo(text="mine").save()))

    assert sweep_sagas("default").settled == 1

    assert configured.second.rows("SELECT text FROM memos") == [("mine",)]
