"""The page of an audit: everything is in it, nothing of it comes from elsewhere, and no text becomes markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.databases import Pair
from crosstie.orm.integrity import AuditResult, AuditState, Finding
from crosstie.workers import audit_listeners
from crosstie.workers.audit import AuditReport, on_audit, run_audit
from crosstie.workers.audit_charts import Point
from crosstie.workers.audit_page import audit_page
from crosstie.workers.metrics import exposition
from integrity.blog import USERS, Blog

BEGUN = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script>&\"'"
ONE = pytest.mark.parametrize("pair", [("sqlite", "sqlite")], indirect=True, ids="-".join)


def report() -> AuditReport:
    """One reference of each state, with texts that want to be markup."""
    findings = tuple(
        Finding({"id": HOSTILE}, f"k{number}", f"SELECT * FROM posts WHERE user = '{HOSTILE}'") for number in range(30)
    )
    return AuditReport(
        "run",
        BEGUN,
        12.5,
        (
            AuditResult("a.good.x -> b.c.id", AuditState.OK, 1000, 5000, seconds=1.0),
            AuditResult(
                "a.bad.x -> b.c.id", AuditState.FINDINGS, 10, 90, 30, 4321, 1, 7, findings, 2.0, notes=(HOSTILE,)
            ),
            AuditResult(f"a.{HOSTILE}.x -> b.c.id", AuditState.INCOMPLETE, reason=f"down: {HOSTILE}"),
        ),
        {},
    )


def history() -> dict[str, list[Point]]:
    """Thirty runs, one of which was not complete."""
    points = [Point(BEGUN - timedelta(days=30 - day), day * 150 % 4400, day != 7) for day in range(30)]
    return {"a.bad.x -> b.c.id": points}


def test_no_text_of_a_database_becomes_markup() -> None:
    """The only angle brackets are the page's own."""
    page = audit_page(report(), history())
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert('x')&lt;/script&gt;&amp;") >= 20 + 1 + 3
    assert not re.search(r"<[^>]*\son\w+\s*=", page)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    """It can be mailed, kept and opened anywhere."""
    page = audit_page(report(), history())
    assert not re.search(r"(src|href|xlink:href)\s*=|@import|url\(|https?://", page)
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta charset="utf-8">' in page


def test_the_figures_states_charts_and_samples_are_on_it() -> None:
    """Sums in the tiles; a bar for each reference with findings; a column for each run; rows with their query."""
    page = audit_page(report(), history(), sample=20)
    body = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    main = ET.fromstring(body)  # noqa: S314 - our own page
    text = " ".join(" ".join(main.itertext()).split())
    assert "Not everything was checked" in text
    for expected in (
        "4,321 orphan rows",
        "5,090 rows checked",
        "FINDINGS",
        "INCOMPLETE",
        "OK",
        "The first 20 of 4,321",
    ):
        assert expected in text
    charts = main.findall(".//svg")
    assert [chart.get("class") for chart in charts] == ["bar", "chart"]
    titles = [title.text or "" for title in charts[1].iter("title")]
    assert (len(titles), sum("not complete" in title for title in titles)) == (30, 1)
    assert len(charts[1].findall(".//path")) == 29  # the first found nothing
    assert len(main.findall(".//code")) == 20


def test_a_run_over_nothing_has_a_page_too() -> None:
    """It says that nothing was checked."""
    assert "None was checked" in audit_page(AuditReport("run", BEGUN, 0.0, (), {}), {})


@ONE
def test_the_command_writes_the_page(
    audit: Callable[..., tuple[int, str, str]], blog: Blog, configured: Pair, tmp_path: Path
) -> None:
    """With the history of the reference, once there is more than one run."""
    blog.post(user_id=900).save()
    assert audit("--html", "first.html")[0] == 1
    assert "over time" not in (tmp_path / "first.html").read_text()
    assert audit("--html", "second.html", "--json")[0] == 1
    page = (tmp_path / "second.html").read_text()
    assert "Orphan rows over time" in page
    assert "SELECT * FROM posts WHERE posts.user_id = 900;" in page


@ONE
def test_listeners_hear_of_each_audit(
    blog: Blog, configured: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that fails keeps the others from nothing."""
    monkeypatch.setattr(audit_listeners, "_listeners", [])
    heard: list[AuditReport] = []

    @on_audit
    def fail(_: AuditReport) -> None:
        raise ValueError("the chat is down")

    on_audit(heard.append)
    assert [run_audit()] == heard
    assert "the chat is down" in caplog.text


@ONE
def test_the_last_audits_are_metrics(blog: Blog, configured: Pair) -> None:
    """By reference, read from the rows of runs."""
    blog.post(user_id=900).save()
    run_audit()
    text = exposition().decode()
    labels = f'{{reference="{USERS}",source="secondary"}}'
    for line in ("orphan_rows{} 1.0", "rows_checked{} 1.0", "incomplete{} 0.0", "deferred_rows{} 0.0"):
        assert f"crosstie_audit_{line.replace('{}', labels)}\n" in text
    assert f"crosstie_audit_started_timestamp_seconds{labels}" in text
