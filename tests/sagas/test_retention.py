"""Records go when nobody can need them, and not a moment earlier."""

from __future__ import annotations

from contextlib import closing
from decimal import Decimal

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from bench.waiting import eventually
from crosstie.orm import ConnectionManager
from crosstie.sagas import SagaAborted, prune, saga, sweep_sagas
from crosstie.sagas.record import SagaHeader
from crosstie.sagas.recovery import Decision, decide, resolve
from sagas.shop import Order, Stock, contents, create_shop, saga_states


def _order() -> str:
    with saga("order", expiry_s=0.001) as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    return s.saga_id


def _age(pair: Pair) -> None:
    """Let an hour pass for every record."""
    for database in pair.databases:
        database.execute("UPDATE crosstie_saga SET updated_at_ms = updated_at_ms - 3600000")


def test_records_stay_for_the_retention(configured: Pair) -> None:
    """Audits ask for sagas that have finished since they began."""
    create_shop(configured.by_name)
    _order()
    sweep_sagas("secondary")

    assert prune("secondary") == prune("default") == 0


def test_the_decision_outlives_every_branch_that_may_ask_for_it(configured: Pair) -> None:
    """`committed` is kept, however old, while a branch is applied; then all records of the saga go."""
    create_shop(configured.by_name)
    _order()
    _age(configured)

    assert prune("default") == 0
    sweep_sagas("secondary")
    _age(configured)
    assert prune("default") == 1
    assert prune("secondary") == 1
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}


def test_tombstones_wait_for_older_transactions(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that began before the tombstone could be the saga's own original, standing still."""
    create_shop(configured.by_name)
    monkeypatch.setenv("CROSSTIE_SAGA__RETENTION_S", "0")
    ConnectionManager.configure(configured.configuration)

    with configured.second.connect() as connection, closing(connection.cursor()) as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT count(*) FROM stock")
        cursor.fetchall()
        with crash_at("saga.branch-recorded"), pytest.raises(SagaAborted):
            _order()
        assert saga_states(configured.by_name) == {"default": ["finished"], "secondary": ["refused"]}
        if configured.second.kind == "mariadb":  # innodb_trx is a picture that is at least 0.1 s old
            eventually(lambda: configured.second.scalar("SELECT count(*) FROM information_schema.innodb_trx") != 0)
        assert prune("default") == 0, "home's tombstone outlives those of the branches"
        if configured.second.kind != "sqlite":  # it has one writer at a time: none older can be open beside a tombstone
            assert prune("secondary") == 0
        cursor.execute("ROLLBACK")

    eventually(lambda: prune("secondary") == 1)  # other tests have transactions on the server
    eventually(lambda: prune("default") == 1)  # other tests have transactions on the server


def test_a_recoverer_that_slept_through_the_retention_does_not_abort_a_committed_saga(configured: Pair) -> None:
    """It came for an applied branch, and finds home without a record because all was settled long ago."""
    create_shop(configured.by_name)
    saga_id = _order()
    header = SagaHeader(saga_id, "order", "default", ("default", "secondary"))
    after = contents(configured.by_name)

    sweep_sagas("secondary")
    _age(configured)
    assert (prune("default"), prune("secondary")) == (1, 1)

    assert decide(header, "secondary") is Decision.FORGOTTEN
    assert resolve(header, "secondary").decision is Decision.FORGOTTEN
    assert contents(configured.by_name) == after
    assert saga_states(configured.by_name) == {"default": [], "secondary": []}
