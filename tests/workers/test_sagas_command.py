"""`crosstie sagas …` shows where sagas stand, and what an operator decides is done by the protocol's own rules."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from decimal import Decimal

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import LockTimeout
from crosstie.orm.faults import FaultInjected, armed
from crosstie.sagas import SagaAborted, saga, sweep_sagas
from crosstie.sagas.operation import end_now
from sagas.shop import Order, Stock, contents, create_shop, saga_states


@pytest.fixture
def shop(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A shop whose databases the command finds."""
    pair = configured_crash_pair
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(pair.configuration))
    create_shop(pair.by_name)
    pair.second.execute("UPDATE stock SET note = 'before'")
    return pair


def change_stock(stranger: Callable[[], None], *, expiry_s: float = 60.0) -> str:
    """A saga that fails after its branch has committed and a stranger has been there; its id."""
    with pytest.raises(SagaAborted), armed("saga.branch-committed", stranger), saga("restock", expiry_s=expiry_s) as s:
        Order(sku="new", amount=Decimal(1)).save()
        stock = Stock.find_by(sku="change")
        assert stock is not None
        stock.update(note="private-mine")
        Stock.find_by(sku="count").increment(reserved=5)  # type: ignore[union-attr]
        Stock.find_by(sku="delete").delete()  # type: ignore[union-attr]
        Stock(sku="new").save()
    return s.saga_id


@pytest.fixture
def conflict(shop: Pair) -> str:
    """A saga whose undo is quarantined: a stranger has changed a row that it wrote."""

    def stranger() -> None:
        shop.second.execute("UPDATE stock SET note = 'private-theirs' WHERE sku = 'change'")
        raise RuntimeError("and the saga fails")

    return change_stock(stranger)


def half_done(expiry_s: float) -> str:
    """A saga whose process has gone after its branch's commit; its id."""
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("restock", expiry_s=expiry_s) as s,
    ):
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    return s.saga_id


def notes(shop: Pair) -> dict[object, object]:
    """The notes of the stock, by sku."""
    return dict(shop.second.rows("SELECT sku, note FROM stock"))


def test_a_quarantined_saga_is_listed_with_what_stands_in_its_way(cli: Callable, shop: Pair, conflict: str) -> None:
    """As a table, as JSON and in full; values of rows only where they are asked for."""
    status, out, _ = cli("sagas", "list")
    assert (status, conflict in out, "quarantined" in out) == (0, True, True)
    status, out, _ = cli("sagas", "quarantined", "--json")
    (found,) = json.loads(out)["sagas"]
    assert (status, found["id"], found["decision"], found["quarantined"]) == (1, conflict, "aborted", ["secondary"])
    status, out, _ = cli("sagas", "show", conflict)
    assert status == 0
    assert "secondary (branch): applied" in out
    assert "default (home): aborted" in out
    assert "somebody has changed note since" in out
    assert "undo delete of stock" in out
    assert "private" not in out
    for arguments in (("--show-values",), ("--show-values", "--json")):
        out = cli("sagas", "show", conflict, *arguments)[1]
        assert "private-mine" in out
        assert "private-theirs" in out
    assert "private" not in cli("sagas", "show", conflict, "--json")[1]


def test_a_retry_undoes_once_the_stranger_is_out_of_the_way(
    cli: Callable, shop: Pair, conflict: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, it changes nothing and says so by its exit status; it is logged with who did it."""
    status, out, err = cli("sagas", "retry", conflict)
    assert (status, "unfinished" in out, "changed note" in err) == (1, True, True)
    assert notes(shop)["change"] == "private-theirs"
    shop.second.execute("UPDATE stock SET note = 'private-mine' WHERE sku = 'change'")
    with caplog.at_level(logging.WARNING, logger="crosstie.operator"):
        status, out, _ = cli("sagas", "retry", conflict, "--json")
    assert (status, json.loads(out)["finished"]) == (0, True)
    assert f"retry saga {conflict}" in caplog.text
    assert notes(shop) == dict.fromkeys(["keep", "change", "delete", "count"], "before")
    assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["undone"]}
    assert cli("sagas", "quarantined")[0] == 0


def test_a_forced_undo_overwrites_what_others_did(
    cli: Callable, shop: Pair, conflict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were changed, made again or deleted meanwhile are as before the saga, as far as they are there."""
    shop.second.execute("DELETE FROM stock WHERE sku = 'count'")
    key = shop.second.scalar("SELECT max(id) FROM stock WHERE sku = 'change'")
    assert key is not None
    deleted = int(str(key)) + 1  # the row of `delete` was made after that of `change`
    shop.second.execute(f"INSERT INTO stock (id, sku, reserved) VALUES ({deleted}, 'usurper', 1)")
    shop.second.execute("UPDATE stock SET note = 'theirs too' WHERE sku = 'new'")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert cli("sagas", "force", conflict)[0] == 1
    status, out, _ = cli("sagas", "force", conflict, "--yes")
    assert (status, "finished" in out) == (0, True)
    assert notes(shop) == dict.fromkeys(["keep", "change", "delete"], "before")
    assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["undone"]}


def test_a_skipped_undo_leaves_the_rows(cli: Callable, shop: Pair, conflict: str) -> None:
    """And the saga is finished all the same."""
    before = contents(shop.by_name)
    status, out, _ = cli("sagas", "skip", conflict, "--branch", "secondary", "--yes")
    assert (status, "finished" in out) == (0, True)
    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["undone"]}
    status, _, err = cli("sagas", "force", conflict, "--yes", "-b", "secondary")
    assert (status, "nothing to undo" in err) == (2, True)


def test_only_an_expired_saga_is_retried_and_any_undecided_one_cancelled(cli: Callable, shop: Pair) -> None:
    """Its process may still run, so that aborting it takes another word."""
    before = contents(shop.by_name)
    saga_id = half_done(expiry_s=60)
    status, _, err = cli("sagas", "retry", saga_id)
    assert (status, "has not expired" in err) == (2, True)
    assert saga_states(shop.by_name) == {"default": [], "secondary": ["applied"]}
    assert cli("sagas", "cancel", saga_id, "--yes")[0] == 0
    assert contents(shop.by_name) == before
    assert saga_states(shop.by_name) == {"default": ["finished"], "secondary": ["undone"]}


@pytest.mark.turns("crash_pair")
@pytest.mark.parametrize(
    "crash_pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
def test_a_running_saga_that_is_cancelled_is_told_at_its_commit(shop: Pair) -> None:
    """Home's register decides between the two."""
    before = contents(shop.by_name)
    ended: list[bool] = []

    def operator() -> None:
        ended.append(end_now(s.saga_id).finished)

    with pytest.raises(SagaAborted), armed("saga.branch-committed", operator), saga("restock") as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    assert ended == [True]
    assert contents(shop.by_name) == before


@pytest.mark.parametrize("crash_pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)
def test_a_running_saga_whose_home_is_sqlite_is_not_cancelled_between_its_commits(shop: Pair) -> None:
    """Its transaction has home to itself: whoever comes then is told that it is locked."""
    ConnectionManager.configure(shop.configuration | {"default": shop.first.config | {"busy_timeout_s": 0.1}})
    refused: list[Exception] = []

    def operator() -> None:
        with pytest.raises(LockTimeout) as caught:
            end_now(s.saga_id)
        refused.append(caught.value)

    with armed("saga.branch-committed", operator), saga("restock") as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    assert len(refused) == 1
    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["applied"]}


def test_a_committed_saga_is_settled_and_not_cancelled(cli: Callable, shop: Pair) -> None:
    """A decision is for good."""
    with saga("restock") as s:
        Order(sku="new", amount=Decimal(1)).save()
        Stock(sku="new").save()
    status, _, err = cli("sagas", "cancel", s.saga_id, "--yes")
    assert (status, "committed" in err) == (2, True)
    for command in ("force", "skip"):
        status, _, err = cli("sagas", command, s.saga_id, "--yes", "-b", "secondary")
        assert (status, "its branches stay" in err) == (2, True)
    assert cli("sagas", "retry", s.saga_id)[0] == 0
    assert saga_states(shop.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_leftovers_are_what_nobody_sweeps_and_what_a_restored_backup_lacks(cli: Callable, shop: Pair) -> None:
    """None in a database that is as it should be."""
    assert cli("sagas", "leftovers")[:2] == (0, "Nothing is left over.\n")
    saga_id = half_done(expiry_s=0.001)
    shop.second.execute("UPDATE crosstie_saga SET expires_at_ms = expires_at_ms - 1000")
    with saga("restock") as s:
        Order(sku="more", amount=Decimal(1)).save()
        Stock(sku="more").save()
    shop.second.execute("DELETE FROM crosstie_saga WHERE saga_id = %s", (s.saga_id,))
    status, out, _ = cli("sagas", "leftovers", "--json", "--grace", "0")
    found = [(one["kind"], one["saga_id"]) for one in json.loads(out)["leftovers"]]
    assert (status, sorted(found)) == (1, [("missing-branch", s.saga_id), ("unswept", saga_id)])
    status, out, _ = cli("sagas", "leftovers")
    assert ("unswept" in out, "missing-branch" in out) == (False, True)
    for name in ConnectionManager.names():
        sweep_sagas(name)
    assert "unswept" not in cli("sagas", "leftovers", "--grace", "0")[1]


def test_what_is_not_there_is_said(cli: Callable, shop: Pair, conflict: str) -> None:
    """An unknown id, an unknown branch, a database that does not answer."""
    for command in ("show", "retry"):
        status, _, err = cli("sagas", command, "no-such-saga")
        assert (status, "no-such-saga" in err, "sagas list" in err) == (2, True, True)
    status, _, err = cli("sagas", "skip", conflict, "--branch", "elsewhere", "--yes")
    assert (status, "'elsewhere'" in err) == (2, True)
    down = shop.configuration | {"default": {"driver": "postgresql", "host": "127.0.0.1", "port": 1, "database": "x"}}
    status, out, err = cli("sagas", "list", "--json", configuration=down)
    document = json.loads(out)
    assert (status, list(document["errors"]), err) == (2, ["default"], "")
    assert [one["decision"] for one in document["sagas"]] == ["unknown"]
    status, out, _ = cli("sagas", "show", conflict, configuration=down)
    assert (status, "could not be asked" in out) == (2, True)
