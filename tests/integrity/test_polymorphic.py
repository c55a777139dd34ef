"""Polymorphic references: a column with the key of a row, and one beside it that says of which table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from bench.databases import Pair
from bench.faults import crash_at
from crosstie.orm import ActiveRecord, ConnectionManager
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.faults import FaultInjected
from crosstie.orm.field import IntegerPKMixin, Polymorphic
from crosstie.orm.integrity import AuditScope, AuditState, Strategy, UnknownReference, audit_reference
from crosstie.orm.integrity.catalog import is_indexed
from crosstie.orm.registry import registry
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import AuditReport, run_audit
from crosstie.workers.audit_command import show_report
from crosstie.workers.audit_page import audit_page
from crosstie.workers.audit_references import reflected_reference
from crosstie.workers.audit_triggers import noting_of
from crosstie.workers.repair import Cap, Policy, repair_reference
from integrity.tables import orphans

POSTS = "secondary.notes.subject_id[subject_type=Post] -> default.posts.id"
PHOTOS = "secondary.notes.subject_id[subject_type=Photo] -> default.photos.id"
FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)


@dataclass
class Album:
    """The models of a test."""

    post: Any
    photo: Any
    note: Any


@pytest.fixture
def album(configured: Pair, no_models: None) -> Album:
    """Posts and photos in `default`, notes about either in `secondary`."""

    class Post(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "default"

        id: int | None = None

    class Photo(IntegerPKMixin, ActiveRecord):
        __table_name__ = "photos"
        __connection__ = "default"

        id: int | None = None

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "secondary"

        id: int | None = None
        subject_type: str | None = None
        subject_id: Annotated[int | None, Polymorphic("subject_type", {"Post": Post, "Photo": "Photo"})] = None

    for model in (Post, Photo, Note):
        model.create_table()
    return Album(Post, Photo, Note)


def write(pair: Pair, notes: list[tuple[str | None, int | None]], *, posts: int, photos: int) -> None:
    """Posts and photos numbered from 1, and notes, numbered likewise."""
    pair.first.execute_many("INSERT INTO posts (id) VALUES (%s)", [(one,) for one in range(1, posts + 1)])
    pair.first.execute_many("INSERT INTO photos (id) VALUES (%s)", [(one,) for one in range(1, photos + 1)])
    rows = [(number, *note) for number, note in enumerate(notes, 1)]
    pair.second.execute_many("INSERT INTO notes (id, subject_type, subject_id) VALUES (%s, %s, %s)", rows)


def found(report: AuditReport) -> dict[str, dict[int, Any]]:
    """Reference → orphans."""
    return {one.reference: orphans(one) for one in report.results}


def unknown(report: AuditReport) -> dict[Any, list[int]]:
    """Unknown type → ids."""
    return {one.value: [row["id"] for row in one.row_keys] for result in report.types for one in result.findings}


def test_each_type_is_a_reference_and_an_unknown_one_a_finding(configured: Pair, album: Album) -> None:
    """A key that is a post's is no photo's; a type without a key leads nowhere, and a key without a type is unknown."""
    notes: list[tuple[str | None, int | None]] = [
        ("Post", 1), ("Post", 3), ("Photo", 3), ("Photo", 4), ("Post", None), (None, None),
        ("Video", 1), (None, 1), ("Video", 2), ("Audio", 1),
    ]  # fmt: skip
    write(configured, notes, posts=2, photos=3)
    report = run_audit()
    assert found(report) == {POSTS: {2: 3}, PHOTOS: {4: 4}}
    assert unknown(report) == {"Video": [7, 9], None: [8], "Audio": [10]}
    assert (report.state, [one.name for one in report.types]) == (AuditState.FINDINGS, ["secondary.notes.subject_type"])
    for one in report.results:
        (finding,) = one.findings
        assert [row[0] for row in configured.second.rows(finding.query.rstrip(";"))] == [finding.child_key["id"]]
    for kind in report.types[0].findings:
        assert len(configured.second.rows(kind.query.rstrip(";"))) == kind.rows
    configured.second.execute("DELETE FROM notes WHERE id IN (2, 4, 7, 8, 9, 10)")
    assert run_audit().state is AuditState.OK


@FEW
def test_every_strategy_reads_the_rows_of_one_type(configured: Pair, album: Album) -> None:
    """By brute force, in pages of a few keys."""
    notes: list[tuple[str | None, int | None]] = [(("Post", "Photo", None)[n % 3], n * 7 % 40) for n in range(90)]
    write(configured, notes, posts=20, photos=33)
    strategies = set(Strategy) - {Strategy.FETCH}
    if configured.first.kind == "sqlite":
        strategies -= {Strategy.WORDS, Strategy.GAPS}
    for text, of_type, highest in ((POSTS, "Post", 20), (PHOTOS, "Photo", 33)):
        there = range(1, highest + 1)
        expected = {n: key for n, (kind, key) in enumerate(notes, 1) if kind == of_type and key not in there}
        for strategy in strategies:
            result = audit_reference(reflected_reference(text), chunk_size=7, strategy=strategy)
            assert (result.reason, orphans(result)) == (None, expected), strategy
            if strategy is not Strategy.GAPS:
                assert result.keys_checked == len({key for kind, key in notes if kind == of_type}), strategy


@pytest.mark.turns("pair")
@FEW
def test_without_models_and_in_the_settings(
    configured: Pair, album: Album, no_models: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `--from-sql` takes it; only what is declared tells which types there are."""
    configured.second.execute("CREATE INDEX notes_subject ON notes (subject_type, subject_id)")
    write(configured, [("Post", 1), ("Post", 9), ("Photo", 9)], posts=1, photos=1)
    registry._models.clear()
    registry.generation += 1
    assert is_indexed(reflected_reference(POSTS).child)
    alone = run_audit([reflected_reference(POSTS)])
    assert (found(alone), alone.types) == ({POSTS: {2: 9}}, ())
    monkeypatch.setenv("CROSSTIE_AUDIT__REFERENCES", json.dumps([POSTS]))
    ConnectionManager.configure(configured.configuration)
    report = run_audit()
    assert (found(report), unknown(report)) == ({POSTS: {2: 9}}, {"Photo": [3]})
    for text in (POSTS.replace("]", ""), POSTS.replace("=Post", ""), POSTS.replace("subject_type=", "=")):
        with pytest.raises(UnknownReference, match="type of a polymorphic reference"):
            reflected_reference(text)


@pytest.mark.turns("pair")
@FEW
def test_what_a_saga_has_is_deferred(configured: Pair, album: Album) -> None:
    """A note of a type that is unknown, and one whose post is not yet there."""
    with (
        crash_at("saga.branch-committed"),
        crash_at("recovery.before-decision"),
        pytest.raises(FaultInjected),
        saga("note", home="default", expiry_s=3600),
    ):
        album.post().save()
        album.note(subject_type="Post", subject_id=1).save()
        album.note(subject_type="Video", subject_id=1).save()
    report = run_audit(["notes.subject_id[subject_type=Post]"])
    assert (report.state, report.results[0].deferred_rows, report.types[0].deferred) == (AuditState.OK, 1, 1)
    configured.second.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    sweep_sagas("secondary")
    assert run_audit(leftovers=False).types[0].deferred == 0


@ONE
def test_reports_name_the_unknown_types(configured: Pair, album: Album, capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal, in JSON and on the page."""
    write(configured, [("Video", 5)], posts=0, photos=0)
    report = run_audit()
    (told,) = json.loads(report.to_json())["types"]
    assert (told["column"], told["findings"][0]["kind"]) == ("secondary.notes.subject_type", "unknown-type")
    assert "unknown type 'Video' in 1 rows" in audit_page(report, {})
    show_report(report, sample=5)
    out = capsys.readouterr().out
    assert "unknown type 'Video' in 1 rows: id=1" in out
    assert out.splitlines()[-1] == "Next: correct these types, or declare the models that they mean."


@ONE
def test_changes_are_read_in_full_and_repairs_meet_one_type(configured: Pair, album: Album) -> None:
    """A trigger on the key is not told of a type that changes; a repair of posts leaves photos alone."""
    write(configured, [("Post", 9), ("Photo", 9)], posts=1, photos=1)
    reference = reflected_reference(POSTS)
    assert "a type has changed" in (noting_of(reference).reason or "")
    report = run_audit([POSTS], scope=AuditScope.CHANGES)
    assert (report.results[0].scope, found(report)) == (AuditScope.FULL, {POSTS: {1: 9}})
    repair_reference(POSTS, Policy.SET_NULL, apply=True, cap=Cap(percent=100.0))
    assert configured.second.rows("SELECT id, subject_type, subject_id FROM notes ORDER BY id") == [
        (1, "Post", None),
        (2, "Photo", 9),
    ]


@ONE
def test_what_cannot_be_meant_is_refused(configured: Pair, no_models: None) -> None:
    """No model, or a field that is not there."""

    class Note(IntegerPKMixin, ActiveRecord):
        __table_name__ = "notes"
        __connection__ = "secondary"

        subject_type: str
        subject_id: Annotated[int, Polymorphic("subject_kind", {"Note": "Note"})]

    with pytest.raises(ModelDefinitionError, match="subject_kind"):
        run_audit()
