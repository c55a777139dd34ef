"""Plain SQLAlchemy inside a saga: declarative models, sessions and Core, undone like models of our own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench.databases import Pair, fresh_database
from bench.faults import crash_at
from bench.guard import configured_databases
from crosstie.orm.errors import CrosstieError, DuplicateKey
from crosstie.outbox import Event, publish, subscriber, sync_routes
from crosstie.sagas import SagaAborted, SagaBlock, saga
from sagas.shop import Order, contents, create_shop, saga_states


class Base(DeclarativeBase):
    """A user's own base class."""


class Item(Base):
    """The same table as `Stock` has, as a user of SQLAlchemy would declare it."""

    __tablename__ = "stock"

    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    sku: Mapped[str]
    reserved: Mapped[int] = mapped_column(default=0)
    note: Mapped[str | None]


table: sa.Table = Item.__table__  # type: ignore[assignment]


def _by_session(s: SagaBlock) -> None:
    session = s.session("secondary")
    session.add_all([Item(sku="new"), Item(sku="other")])
    keep, change, delete = (
        session.scalars(sa.select(Item).where(Item.sku == sku)).one() for sku in ("keep", "change", "delete")
    )
    keep.note = "kept"
    change.reserved = Item.reserved + 5
    session.delete(delete)
    session.flush()
    change.note = "changed"
    session.commit()  # commits nothing: only the saga does


def _by_bulk_statements_of_a_session(s: SagaBlock) -> None:
    session = s.session("secondary")
    session.execute(
        sa.update(Item).where(Item.sku.in_(["keep", "change"])).values(note="bulk", reserved=Item.reserved + 1)
    )
    session.execute(sa.delete(Item).where(Item.sku == "delete"))


def _by_core(s: SagaBlock) -> None:
    connection = s.connection("secondary")
    connection.execute(sa.insert(table).values(sku="new", reserved=0))
    connection.execute(sa.update(table).where(table.c.sku == "keep").values(note="core"))
    connection.execute(
        sa.update(table).where(table.c.sku == sa.bindparam("which")),
        [{"which": "change", "note": "one"}, {"which": "count", "note": "two"}],
    )
    connection.execute(sa.delete(table).where(table.c.sku == "delete"))
    connection.execute(sa.select(table)).all()
    connection.execute(sa.text("SELECT 1")).all()
    connection.exec_driver_sql("SELECT 1").all()


WAYS: list[Callable[[SagaBlock], None]] = [_by_session, _by_bulk_statements_of_a_session, _by_core]


@pytest.mark.parametrize("write", WAYS, ids=lambda way: way.__name__.removeprefix("_by_"))
def test_writes_of_sqlalchemy_are_committed_and_undone_with_the_saga(
    write: Callable[[SagaBlock], None], configured: Pair
) -> None:
    """In a branch, with images: a failure between the commits leaves every row as it was."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    def block() -> None:
        with saga("order") as s:
            Order(sku="new", amount=Decimal(1)).save()
            write(s)

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted) as aborted:
        block()
    assert aborted.value.pending == ()
    assert contents(configured.by_name) == before

    block()
    assert contents(configured.by_name) != before
    assert saga_states(configured.by_name) == {"default": ["finished", "committed"], "secondary": ["undone", "applied"]}


def test_nothing_of_a_session_is_visible_before_the_saga_commits(configured: Pair) -> None:
    """Neither a flush nor a commit of the session commits."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with saga("order") as s:
        session = s.session("secondary")
        assert s.session("secondary") is session
        session.add(Item(sku="new"))
        session.commit()
        assert contents(configured.by_name) == before

    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'new'") == 1


def test_what_was_added_is_flushed_at_the_end_of_the_block_and_stays_readable(configured: Pair) -> None:
    """Nobody has to flush, and the objects can be used afterwards."""
    create_shop(configured.by_name)

    with saga("order") as s:
        item = Item(sku="new")
        s.session("secondary").add(item)

    assert item.id == configured.second.scalar("SELECT max(id) FROM stock")


def test_a_flush_that_fails_aborts_the_saga(configured: Pair) -> None:
    """Also where its exception is swallowed: the database may have dropped what came before it."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(CrosstieError), saga("order") as s:
        Order(sku="new", amount=Decimal(1)).save()
        session = s.session("secondary")
        session.add(Item(id=1, sku="twice"))
        with pytest.raises(sa.exc.IntegrityError):
            session.flush()
    assert contents(configured.by_name) == before

    with pytest.raises(SagaAborted) as aborted, saga("order") as s:
        Order(sku="new", amount=Decimal(1)).save()
        s.session("secondary").add(Item(id=1, sku="twice"))
    assert isinstance(aborted.value.__cause__, DuplicateKey)
    assert contents(configured.by_name) == before


def test_rollback_of_a_session_aborts_the_saga(configured: Pair) -> None:
    """The models' writes are in the same transaction, and nobody can tell them apart."""
    create_shop(configured.by_name)
    before = contents(configured.by_name)

    with pytest.raises(CrosstieError), saga("order") as s:
        Order(sku="new", amount=Decimal(1)).save()
        session = s.session("secondary")
        session.add(Item(sku="new"))
        session.flush()
        session.rollback()

    assert contents(configured.by_name) == before


@pytest.mark.parametrize(
    "statement",
    [
        sa.text("UPDATE stock SET note = 'text'"),
        sa.insert(table).from_select(["sku", "reserved"], sa.select(table.c.sku, table.c.reserved)),
    ],
    ids=["text", "insert-select"],
)
def test_what_cannot_be_captured_makes_its_database_home(statement: sa.Executable, configured: Pair) -> None:
    """Then the other one is the branch, which has images."""
    create_shop(configured.by_name)

    with saga("order", home=None) as s:
        s.connection("secondary").execute(statement)
        Order(sku="new", amount=Decimal(1)).save()

    assert saga_states(configured.by_name) == {"default": ["applied"], "secondary": ["committed"]}


def test_a_savepoint_of_a_session_takes_its_writes_and_their_undo_back(configured: Pair) -> None:
    """What `begin_nested` rolled back is not undone a second time, and the rest of the saga stands."""
    create_shop(configured.by_name)

    with saga("order") as s:
        Order(sku="new", amount=Decimal(1)).save()
        session = s.session("secondary")
        with session.begin_nested():
            session.add(Item(sku="kept"))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(Item(sku="lost"))
            session.flush()
            raise ZeroDivisionError
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Item(id=1, sku="twice"))

    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'kept'") == 1
    assert configured.second.scalar("SELECT count(*) FROM stock WHERE sku = 'lost'") == 0
    assert saga_states(configured.by_name) == {"default": ["committed"], "secondary": ["applied"]}
    assert "lost" not in str(configured.second.scalar("SELECT undo_log FROM crosstie_saga"))


def test_a_query_that_writes_is_no_query(tmp_path: Path) -> None:
    """PostgreSQL lets a SELECT read what an UPDATE in its WITH clause has written."""
    with ExitStack() as stack:
        pair = Pair(
            stack.enter_context(fresh_database("sqlite", tmp_path)),
            stack.enter_context(fresh_database("postgresql", tmp_path)),
        )
        stack.enter_context(configured_databases(pair))
        create_shop(pair.by_name)
        written = sa.update(table).values(note="cte").returning(table.c.id).cte("written")

        with saga("order", home=None) as s:
            s.connection("secondary").execute(sa.select(written)).all()
            Order(sku="new", amount=Decimal(1)).save()

        assert saga_states(pair.by_name) == {"default": ["applied"], "secondary": ["committed"]}


def test_driver_level_sql_is_noticed(configured: Pair) -> None:
    """exec_driver_sql bypasses SQLAlchemy's constructs, and is not overlooked."""
    create_shop(configured.by_name)

    with saga("order", home=None) as s:
        s.connection("secondary").exec_driver_sql("UPDATE stock SET note = 'driver'")
        Order(sku="new", amount=Decimal(1)).save()

    assert saga_states(configured.by_name)["secondary"] == ["committed"]


def test_a_database_that_was_only_read_through_a_session_is_no_participant(configured: Pair) -> None:
    """Reading costs no record."""
    create_shop(configured.by_name)

    with saga("order") as s:
        assert len(s.session("secondary").scalars(sa.select(Item)).all()) == 4
        Order(sku="new", amount=Decimal(1)).save()

    assert saga_states(configured.by_name) == {"default": [], "secondary": []}


def test_an_event_published_on_a_sagas_session_leaves_only_if_it_commits(
    configured: Pair, own_registries: None
) -> None:
    """`publish(event, session)` inside a saga obeys the saga."""

    class Reserved(Event):
        sku: str

    @subscriber(Reserved, database="default")
    def _(event: Reserved) -> None:
        """Nobody drains here."""

    create_shop(configured.by_name)
    sync_routes()

    def block() -> None:
        with saga("order") as s:
            Order(sku="new", amount=Decimal(1)).save()
            session = s.session("secondary")
            session.add(Item(sku="new"))
            publish(Reserved(sku="new"), session)

    with crash_at("saga.branch-committed"), pytest.raises(SagaAborted):
        block()
    assert configured.second.scalar("SELECT count(*) FROM crosstie_outbox") == 0

    block()
    assert configured.second.scalar("SELECT saga_id FROM crosstie_outbox") is not None
