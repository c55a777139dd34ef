"""`crosstie sagas …` shows what a saga owes that recovers forward, and lets an operator decide about a conflict."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from decimal import Decimal

import pytest

from bench.databases import Pair
from crosstie.orm.faults import armed
from crosstie.sagas import saga, sweep_sagas
from sagas.bank import FIRST, Posting, Transfer, create_bank
from sagas.shop import saga_states

NEW = uuid.UUID(int=7)


@pytest.fixture
def bank(configured_crash_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A bank whose databases the command finds."""
    pair = configured_crash_pair
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(pair.configuration))
    create_bank(pair.by_name)
    return pair


@pytest.fixture
def owing(bank: Pair) -> str:
    """A saga that owes a posting, under a key under which somebody else has made one since."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with (
        armed("forward.home-committed", interrupt),
        pytest.raises(KeyboardInterrupt),
        saga("transfer", recover="forward", expiry_s=-1) as s,
    ):
        Transfer(amount=Decimal(1)).save()
        Posting(id=NEW, text="private-mine").save()
        Posting.find(FIRST).increment(counted=1)
    Posting(id=NEW, text="private-theirs").save()
    return s.saga_id


def test_what_is_owed_is_listed_and_shown(cli: Callable, bank: Pair, owing: str) -> None:
    """The mode, the branch, and the writes; their values only where they are asked for."""
    del bank
    status, out, _ = cli("sagas", "list", "--json")
    (found,) = json.loads(out)["sagas"]
    assert (status, found["id"], found["mode"], found["decision"], found["owed"]) == (
        *(0, owing, "forward", "owed", ["secondary"]),
    )
    assert (found["quarantined"], "private" in out) == ([], False)
    status, out, _ = cli("status", "--json")
    assert {one["name"]: one["unresolved_sagas"]["owed"] for one in json.loads(out)["databases"]} == {
        "default": 1,
        "secondary": 0,
    }
    sweep_sagas("default")
    status, out, _ = cli("sagas", "quarantined")
    assert (status, owing in out) == (1, True)
    status, out, _ = cli("sagas", "show", owing)
    assert (status, "redo in secondary: insert of postings" in out, "private" in out) == (0, True, False)
    status, out, _ = cli("sagas", "show", owing, "--show-values")
    assert "private-mine" in out


def test_an_owed_branch_is_forced(cli: Callable, bank: Pair, owing: str) -> None:
    """Nobody can cancel what home has committed."""
    sweep_sagas("default")
    status, _, err = cli("sagas", "cancel", owing, "--yes")
    assert (status, "a decision is for good" in err) == (2, True)
    status, out, err = cli("sagas", "retry", owing)
    assert (status, "unfinished" in out, "constraint" in err) == (1, True, True)

    status, out, _ = cli("sagas", "force", owing, "--yes")

    assert (status, "committed, finished" in out) == (0, True)
    assert Posting.find(NEW).text == "private-mine"
    assert saga_states(bank.by_name) == {"default": ["committed"], "secondary": ["done"]}


def test_an_owed_branch_is_skipped(cli: Callable, bank: Pair, owing: str) -> None:
    """None of its writes comes any more."""
    sweep_sagas("default")

    status, out, _ = cli("sagas", "skip", owing, "--yes")

    assert (status, "committed, finished" in out) == (0, True)
    assert (Posting.find(NEW).text, Posting.find(FIRST).counted) == ("private-theirs", 0)
    assert saga_states(bank.by_name) == {"default": ["committed"], "secondary": ["refused"]}
