"""`crosstie outbox …` shows what is so, and what it changes is acted upon by the next owner of the lane."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.databases import Pair, TestDatabase
from crosstie.orm.connection import ConnectionManager
from crosstie.outbox import event, subscription, sweep_lanes
from outbox import bank

FORTUNE = {"account": "private-name", "number": 1}


@pytest.fixture
def cured() -> threading.Event:
    """Set it, and the poison is none any more."""
    return threading.Event()


@pytest.fixture
def pair(
    configured_crash_pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    own_registries: None,
    no_hurry: None,
    cured: threading.Event,
) -> Pair:
    """A bank whose first movement of each account cannot be applied: two accounts are parked, with two events each."""
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(configured_crash_pair.configuration))
    bank.subscribe(bank.poisoned_by(1, cured=cured))
    bank.open_bank(["private-name", "b"])
    for name in ("private-name", "b"):
        bank.transfer(name, times=2)
    sweep_lanes("default", owner="one")
    assert len(bank.parked(configured_crash_pair.first)) == 4
    return configured_crash_pair


def states(database: TestDatabase) -> list[tuple[str, int]]:
    """State and attempts of the parked events."""
    return [(state, attempts) for _, state, attempts, _ in bank.parked(database)]


def first_id(database: TestDatabase) -> str:
    """The id of the first parked event."""
    return str(bank.parked(database)[0][0])


def test_status_counts_what_is_parked_by_what_is_to_be_done(cli: Callable, pair: Pair) -> None:
    """As a table and as JSON; also in `crosstie status`."""
    status, out, _ = cli("outbox", "status")
    assert status == 0
    assert re.search(r"default +secondary +0 +- +4 +2 +0 +0 +0 +event ", out)
    status, out, _ = cli("outbox", "status", "--json", "--route", "secondary", "-d", "default")
    document = json.loads(out)
    (route,) = document["routes"]
    assert (status, document["version"], document["errors"]) == (0, 1, {})
    assert (route["depth"], route["parked"], route["parked_keys"], route["dead"]) == (0, 4, 2, 0)
    status, out, _ = cli("status", "--json")
    assert json.loads(out)["databases"][0]["routes"][0]["parked"] == 4


def test_lanes_are_shown_if_there_is_something_to_say(cli: Callable, pair: Pair) -> None:
    """The idle ones with --all."""
    total = int(pair.first.scalar("SELECT count(*) FROM crosstie_lane WHERE route = 'secondary'"))
    found = json.loads(cli("outbox", "lanes", "--json")[1])["lanes"]
    assert sum(one["parked"] for one in found) == 4
    assert all(one["parked"] == 2 or len(found) == 1 for one in found)
    everything = json.loads(cli("outbox", "lanes", "--all", "--json", "-d", "default", "-r", "secondary")[1])["lanes"]
    assert len(everything) == total
    assert re.search(r"default +secondary +\d+ +\d+ +- +- +0 +- +[24]", cli("outbox", "lanes")[1])


def test_lag_is_that_of_the_oldest_event_and_an_exit_status_for_monitoring(cli: Callable, pair: Pair) -> None:
    """A parked event has not arrived either."""
    pair.first.execute("UPDATE crosstie_parked SET created_at_ms = created_at_ms - 50000")
    (route, *_) = json.loads(cli("outbox", "lag", "--json")[1])["routes"]
    assert 50 <= route["lag_s"] < 170
    assert [cli("outbox", "lag", "--max", limit)[0] for limit in ("20", "500")] == [1, 0]


def test_parked_shows_why_and_the_payload_only_if_it_is_asked_for(cli: Callable, pair: Pair) -> None:
    """It may be personal data."""
    status, out, _ = cli("outbox", "parked", "--json", "--key", "private-name")
    (one,) = json.loads(out)["events"]
    assert (status, one["state"], one["attempts"], one["type"]) == (0, "failing", 1, "bank.moved")
    assert "Poison" in one["error"]
    assert "payload" not in one
    assert "number" not in cli("outbox", "parked")[1]
    (one,) = json.loads(cli("outbox", "parked", "--json", "--id", first_id(pair.first), "--show-payload")[1])["events"]
    assert json.loads(one["payload"]) == FORTUNE
    assert '"number":1' in cli("outbox", "parked", "--show-payload")[1]
    everything = json.loads(cli("outbox", "parked", "--json", "--behind")[1])["events"]
    assert [one["state"] for one in everything] == ["failing", "behind"] * 2
    assert json.loads(cli("outbox", "parked", "--json", "--dead")[1])["events"] == []


def test_tail_shows_new_events_as_lines(cli: Callable, pair: Pair) -> None:
    """One JSON document for each, without the payload."""
    bank.transfer("b")
    (line,) = cli("outbox", "tail", "--once", "--json")[1].splitlines()
    one = json.loads(line)
    assert (one["source"], one["route"], one["type"], one["key"]) == ("default", "secondary", "bank.moved", "b")
    assert "payload" not in one
    out = cli("outbox", "tail", "--once", "--show-payload")[1]
    assert re.search(r"default -> secondary: \d+ bank\.moved key=b uid=\S+ \{.*\"number\":3", out)


def test_redrive_gives_dead_events_all_their_attempts_again(
    cli: Callable, pair: Pair, cured: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """After the cause is gone; those behind follow in order, and the log says who asked."""
    pair.first.execute("UPDATE crosstie_parked SET state = 'dead', attempts = 12 WHERE state = 'failing'")
    cured.set()
    bank.ready_now(pair.first)
    assert sweep_lanes("default", owner="one") == 0
    with caplog.at_level(logging.WARNING, "crosstie.operator"):
        status, out, _ = cli("outbox", "redrive", "--key", "b", "--json")
    assert (status, json.loads(out)["redrive"]["default"]) == (0, 1)
    assert re.search(r"operator \S+.*: redrive 1 parked event\(s\) in 'default' \(key='b'\)", caplog.text)
    assert states(pair.first) == [("dead", 12), ("behind", 0), ("failing", 0), ("behind", 0)]
    assert sweep_lanes("default", owner="one") == 2
    assert bank.arrivals(pair.second) == [("b", 1), ("b", 2)]
    assert cli("outbox", "redrive", "--all")[0] == 0
    assert sweep_lanes("default", owner="one") == 2
    assert cli("outbox", "redrive", "--all")[0] == 1, "nothing matches any more"


def test_skip_asks_first_and_then_the_key_goes_on_without_the_event(
    cli: Callable, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not confirmed is not done."""
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    status, _, err = cli("outbox", "skip", "--key", "b")
    assert status == 1
    assert "1 event(s) will be lost" in err
    assert states(pair.first) == [("failing", 1), ("behind", 0)] * 2
    status, out, _ = cli("outbox", "skip", "--key", "b", "--yes")
    assert (status, "1 event(s) will be deleted" in out) == (0, True)
    assert sweep_lanes("default", owner="one") == 1
    assert bank.arrivals(pair.second) == [("b", 2)]
    assert states(pair.first) == [("failing", 1), ("behind", 0)]


def test_skip_can_take_those_behind_along(cli: Callable, pair: Pair) -> None:
    """Or one of them by its id."""
    assert json.loads(cli("outbox", "skip", "-k", "b", "--behind", "-y", "--json")[1])["skip"]["default"] == 2
    sweep_lanes("default", owner="one")
    assert states(pair.first) == [("failing", 1), ("behind", 0)]
    second = str(bank.parked(pair.first)[1][0])
    assert cli("outbox", "skip", "--id", second, "-y")[0] == 0
    sweep_lanes("default", owner="one")
    assert states(pair.first) == [("failing", 1)]
    assert bank.arrivals(pair.second) == []


def test_replace_gives_the_event_another_payload_which_is_applied_in_its_place(
    cli: Callable, pair: Pair, tmp_path: Path
) -> None:
    """In the order of its key."""
    (tmp_path / "repaired.json").write_text('{"account": "private-name", "number": 10}')
    status, out, _ = cli("outbox", "replace", first_id(pair.first), "--file", "repaired.json")
    assert (status, "replaced" in out) == (0, True)
    assert sweep_lanes("default", owner="one") == 2
    assert bank.arrivals(pair.second) == [("private-name", 10), ("private-name", 2)]


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ("{", "payload: expected JSON"),
        ('{"account": "private-name"}', "number: missing"),
        ('{"account": "other", "number": 1}', "expected account to stay the key"),
    ],
)
def test_replace_refuses_what_does_not_fit(
    cli: Callable, pair: Pair, tmp_path: Path, payload: str, complaint: str
) -> None:
    """No JSON, not the class's fields, another key; nothing is changed then."""
    (tmp_path / "broken.json").write_text(payload)
    status, _, err = cli("outbox", "replace", first_id(pair.first), "-f", "broken.json")
    assert (status, complaint in " ".join(err.split())) == (2, True)
    assert states(pair.first)[0] == ("failing", 1)
    assert cli("outbox", "replace", "987654", "-f", "broken.json")[0] == 2
    assert "cannot be read" in " ".join(cli("outbox", "replace", first_id(pair.first), "-f", "none.json")[2].split())


def test_replace_takes_any_json_for_a_class_that_it_does_not_know(
    cli: Callable, pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker that knows it will say what it thinks."""
    monkeypatch.setattr(event, "_classes", {})
    (tmp_path / "any.json").write_text('{"some": "thing"}')
    assert cli("outbox", "replace", first_id(pair.first), "-f", "any.json")[0] == 0


def test_a_paused_route_delivers_nothing_until_it_is_resumed(cli: Callable, pair: Pair, cured: threading.Event) -> None:
    """Neither new events nor parked ones, by any worker."""
    cured.set()
    status, out, _ = cli("outbox", "pause", "secondary", "--database", "default")
    assert (status, "is paused" in out) == (0, True)
    bank.transfer("b")
    bank.ready_now(pair.first)
    assert sweep_lanes("default", owner="one") == 0
    assert "secondary (paused)" in cli("outbox", "status")[1]
    status, out, _ = cli("outbox", "resume", "secondary", "-d", "default", "--json")
    assert (status, json.loads(out)["databases"]) == (0, ["default"])
    assert sweep_lanes("default", owner="one") == 5
    assert states(pair.first) == []


def test_a_pause_stops_an_owner_after_the_batch_in_hand(
    cli: Callable, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told to wait for it, and says so where that takes too long."""
    from crosstie.outbox import operation

    monkeypatch.setattr(subscription, "_subscriptions", {})
    applied: list[int] = []

    def receive(moved: bank.Moved) -> None:
        if not applied:
            assert operation.pause("default", "secondary") == 1
        applied.append(moved.number)

    bank.subscribe(receive)
    monkeypatch.setenv("CROSSTIE_OUTBOX__BATCH_SIZE", "2")
    ConnectionManager.configure(pair.configuration)
    pair.first.execute("DELETE FROM crosstie_parked")
    bank.transfer("b", times=6)
    assert sweep_lanes("default", owner="one") == 2
    assert len(applied) == 2
    pair.first.execute("UPDATE crosstie_lane SET owner = 'x', lease_until_ms = 99999999999999 WHERE lane = 0")
    status, out, _ = cli("outbox", "pause", "secondary", "--wait", "0")
    assert (status, "1 lane(s) still finish what they have in hand" in out) == (1, True)


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_an_unknown_route_is_refused_with_those_that_there_are(cli: Callable, pair: Pair, command: str) -> None:
    """Not silently done to nothing."""
    status, _, err = cli("outbox", command, "secondry")
    assert status == 2
    assert "expected a route of default, secondary and found 'secondry'" in " ".join(err.split())


@pytest.mark.parametrize("command", [["redrive"], ["skip", "--yes"]])
def test_an_action_must_say_what_it_is_about(cli: Callable, pair: Pair, command: list[str]) -> None:
    """Nothing is done to all events by leaving something out."""
    status, _, err = cli("outbox", *command)
    assert (status, "expected --id, --key, --route, --dead or --all" in " ".join(err.split())) == (2, True)


def test_an_unknown_database_is_refused(cli: Callable, pair: Pair) -> None:
    """With the nearest name."""
    status, _, err = cli("outbox", "status", "-d", "defualt")
    assert (status, "Did you mean 'default'?" in " ".join(err.split())) == (2, True)


def test_a_database_without_tables_is_told_and_the_others_are_shown(cli: Callable, pair: Pair) -> None:
    """Exit status 2: what was shown is not everything."""
    pair.second.execute("ALTER TABLE crosstie_parked RENAME TO hidden")
    for command in ("status", "lag", "parked"):
        status, out, err = cli("outbox", command)
        assert status == 2
        assert "crosstie init" in err
        assert "secondary" in out
    assert "secondary" in json.loads(cli("outbox", "parked", "--json")[1])["errors"]


def test_verify_finds_nothing_where_all_is_well(cli: Callable, pair: Pair) -> None:
    """Parked events are no fault of the tables."""
    status, out, _ = cli("outbox", "verify")
    assert (status, out) == (0, "All is well in default, secondary.\n")
    assert json.loads(cli("outbox", "verify", "--json")[1]) == {"version": 1, "exit_status": 0, "problems": []}


BRANCH = (
    "INSERT INTO crosstie_saga (saga_id, step, participant, role, state, name, home, participants, undo_log,"
    " created_at_ms, updated_at_ms, expires_at_ms, next_at_ms, attempts)"
    " VALUES ('s', 0, 'default', 'branch', 'applied', 'test', '{home}', '[]', '[]', 0, 0, 0, 0, 0)"
)
TWICE = (
    "INSERT INTO crosstie_outbox (route, lane, id, uid, {key}, operation, type, schema_version, payload, headers,"
    " created_at_ms) SELECT route, lane, id, uid, {key}, operation, type, schema_version, payload, headers,"
    " created_at_ms FROM crosstie_parked WHERE state = 'failing'"
)


def wait_for_saga(pair: Pair, home: str) -> None:
    """An event of a branch whose saga nobody has decided."""
    bank.transfer("b")
    pair.first.execute("UPDATE crosstie_outbox SET saga_id = 's'")
    pair.first.execute(BRANCH.format(home=home))


def damage(pair: Pair, what: str) -> None:
    """One invariant less."""
    first, key = pair.first, "`key`" if pair.first.kind == "mariadb" else '"key"'
    if what == "lanes-missing":
        first.execute("DELETE FROM crosstie_lane WHERE route = 'secondary' AND lane = 0")
        first.execute("UPDATE crosstie_parked SET lane = 1")
    elif what == "no-lane":
        first.execute("UPDATE crosstie_parked SET lane = 5000")
    elif what == "parked-and-waiting":
        first.execute(TWICE.format(key=key))
    elif what == "no-head":
        first.execute("DELETE FROM crosstie_parked WHERE state = 'failing'")
    elif what == "lease-expired":
        bank.transfer("b")
        first.execute("UPDATE crosstie_lane SET owner = 'gone', lease_until_ms = 1000")
    elif what == "inbox-ahead":
        pair.second.execute("UPDATE crosstie_inbox SET epoch = epoch + 100")
    elif what == "saga-vanished":
        wait_for_saga(pair, "secondary")


@pytest.mark.parametrize(
    "what",
    ["lanes-missing", "no-lane", "parked-and-waiting", "no-head", "lease-expired", "inbox-ahead", "saga-vanished"],
)
def test_verify_finds_what_should_not_be(cli: Callable, pair: Pair, what: str) -> None:
    """Each kind by its name, and exit status 1."""
    damage(pair, what)
    status, out, _ = cli("outbox", "verify", "--json", "-d", "default")
    found = json.loads(out)["problems"]
    assert (status, {one["kind"] for one in found}) == (1, {what}), found
    assert f"default: {what}: " in cli("outbox", "verify")[1]


def test_verify_says_what_it_could_not_check(cli: Callable, pair: Pair) -> None:
    """A home and a target that cannot be asked: exit status 2."""
    wait_for_saga(pair, "nowhere")
    pair.second.execute("ALTER TABLE crosstie_inbox RENAME TO hidden")
    status, out, _ = cli("outbox", "verify", "--json")
    found = json.loads(out)["problems"]
    assert (status, {one["kind"] for one in found}) == (2, {"home-unchecked", "target-unchecked"})


def test_inboxes_are_shown_and_a_vanished_origin_is_forgotten(
    cli: Callable, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """With the database that each belongs to; one that is alive is refused, one that is unknown is status 1."""
    status, out, _ = cli("outbox", "inboxes", "--json", "-d", "secondary")
    document = json.loads(out)
    assert (status, document["errors"]) == (0, {})
    one = document["origins"][0]
    assert (one["target"], one["route"], one["source"]) == ("secondary", "secondary", "default")
    assert one["unused_s"] < 600
    assert one["origin"] in cli("outbox", "inboxes")[1]
    status, _, err = cli("outbox", "forget-origin", one["origin"], "--unused-for", "0")
    assert (status, "has lanes" in err) == (2, True)
    pair.first.execute("UPDATE crosstie_lane SET origin = 'default:another'")
    assert json.loads(cli("outbox", "inboxes", "--json", "-d", "secondary")[1])["origins"][0]["source"] is None
    arguments = ("outbox", "forget-origin", one["origin"], "--unused-for", "0", "--json")
    with caplog.at_level(logging.WARNING):
        status, out, _ = cli(*arguments)
    assert (status, json.loads(out)["forgotten"]) == (0, one["origin"])
    assert json.loads(out)["rows"]["secondary"] > 0
    assert "forget-origin" in caplog.text
    assert cli(*arguments)[0] == 1
    down = {"driver": "sqlite", "database": "/nowhere/at/all.db"}
    assert cli("outbox", "inboxes", configuration=pair.configuration | {"third": down})[0] == 2
