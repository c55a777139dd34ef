"""What is seen in MariaDB and not yet on its disk: the server may still forget it, so nothing elsewhere may rest on it.

There is no holding the disk at the right moment. So the log is not flushed at all for the one commit in question, and
the server dies with it in memory, after somebody else has acted upon it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from decimal import Decimal
from pathlib import Path

import pytest

from bench import engines
from bench.databases import Pair, fresh_database
from bench.guard import configured_databases
from bench.private_servers import PrivateServer, private_server
from crosstie.orm import transaction
from crosstie.orm.errors import DatabaseUnavailable
from crosstie.orm.faults import armed
from crosstie.outbox import Event, subscriber, sweep_lanes, sync_routes
from crosstie.sagas import saga, sweep_sagas
from sagas.bank import Posting
from sagas.shop import Order, Stock, create_shop, saga_states

pytestmark = [pytest.mark.xdist_group("durability"), pytest.mark.usefixtures("own_registries")]


class Sold(Event):
    """Tells of an order, in the order's transaction."""

    __event_type__ = "durability.sold"
    __key__ = "key"

    key: str = "one lane"
    sku: str


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServer]:
    """A MariaDB that flushes its log for commits only, and only if `unflushed` does not keep it from that."""
    settings = {"innodb-flush-log-at-timeout": "2700"}
    with private_server("mariadb", tmp_path_factory.mktemp("server"), settings=settings, on_disk=True) as server:
        yield server


@contextmanager
def unflushed(server: PrivateServer) -> Iterator[None]:
    """Commits of the block are seen at once, and on disk only with the next commit after it."""
    with closing(engines.connect(server.config)) as admin, closing(admin.cursor()) as cursor:
        cursor.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 0")
        try:
            yield
        finally:
            cursor.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")


@contextmanager
def opened(server: PrivateServer, folder: Path, *, forgets: str) -> Iterator[Pair]:
    """A shop, of which one database (`forgets`) is the server's and the other one a SQLite file."""
    with fresh_database("sqlite", folder) as file:
        pair = Pair(server.database(), file) if forgets == "default" else Pair(file, server.database())
        with configured_databases(pair):
            create_shop(pair.by_name)
            yield pair


def die_and_return(server: PrivateServer) -> None:
    """What was not written to the log is gone then."""
    server.kill()
    server.start()


def test_what_nobody_waits_for_is_lost(forgetful: PrivateServer, tmp_path: Path) -> None:
    """Else the tests of this file would show nothing."""
    with opened(forgetful, tmp_path, forgets="default") as pair:
        with unflushed(forgetful):
            Order(sku="seen", amount=Decimal(1)).save()
        assert Order.find_all().where(sku="seen").count() == 1
        die_and_return(forgetful)
        assert pair.first.scalar("SELECT count(*) FROM orders WHERE sku = 'seen'") == 0


def test_no_event_is_heard_of_a_transaction_that_its_server_forgets(forgetful: PrivateServer, tmp_path: Path) -> None:
    """The event is committed after the lane was claimed, by a commit that would have flushed it."""
    heard: list[str] = []
    with opened(forgetful, tmp_path, forgets="default") as pair:
        subscriber(Sold, database="secondary")(lambda event: heard.append(event.sku))
        assert not sync_routes().failed
        Sold(sku="first").publish("default")

        def sell() -> None:
            with unflushed(forgetful), transaction("default"):
                Order(sku="seen", amount=Decimal(1)).save()
                Sold(sku="seen").publish()

        with (
            armed("relay.claimed", sell),
            armed("relay.target-committed", forgetful.kill),
            pytest.raises(DatabaseUnavailable),
        ):
            sweep_lanes("default", owner="test")
        forgetful.start()

        assert "seen" in heard
        assert pair.first.scalar("SELECT count(*) FROM orders WHERE sku = 'seen'") == 1


def test_no_branch_is_settled_upon_a_home_that_its_server_forgets(forgetful: PrivateServer, tmp_path: Path) -> None:
    """It would stay while home is aborted: half a saga."""
    with opened(forgetful, tmp_path, forgets="default") as pair:
        with unflushed(forgetful), saga("sale", home="default"):
            Order(sku="seen", amount=Decimal(1)).save()
            Stock(sku="seen").save()
        assert sweep_sagas("secondary").settled == 1
        die_and_return(forgetful)
        assert saga_states(pair.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_no_home_ceases_to_owe_what_its_branch_forgets(forgetful: PrivateServer, tmp_path: Path) -> None:
    """Nobody would ever do it again."""
    with opened(forgetful, tmp_path, forgets="secondary") as pair:
        Posting.create_table()
        with unflushed(forgetful), saga("sale", home="default", recover="forward"):
            Order(sku="seen", amount=Decimal(1)).save()
            Posting(text="seen").save()
        assert sweep_sagas("default").settled == 1
        die_and_return(forgetful)
        assert saga_states(pair.by_name) == {"default": ["committed"], "secondary": ["done"]}
        assert pair.second.scalar("SELECT count(*) FROM postings") == 1


def test_a_redo_rests_on_no_home_that_its_server_forgets(forgetful: PrivateServer, tmp_path: Path) -> None:
    """It would be done while its saga never was."""
    with opened(forgetful, tmp_path, forgets="default") as pair:
        Posting.create_table()
        with (
            armed("forward.home-committed", _interrupt),
            suppress(KeyboardInterrupt),
            unflushed(forgetful),
            saga("sale", home="default", recover="forward", expiry_s=0.001),
        ):
            Order(sku="seen", amount=Decimal(1)).save()
            Posting(text="seen").save()
        with armed("redo.committed", forgetful.kill), suppress(DatabaseUnavailable):
            sweep_sagas("default")
        forgetful.start()
        assert pair.second.scalar("SELECT count(*) FROM postings") == 1
        assert saga_states(pair.by_name) == {"default": ["owed"], "secondary": ["done"]}


def _interrupt() -> None:
    raise KeyboardInterrupt
