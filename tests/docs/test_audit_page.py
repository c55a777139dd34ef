"""The example of docs/audit.md runs, and finds what the page says."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.orm.integrity import AuditState
from crosstie.orm.registry import registry
from crosstie.sagas import sweep_sagas
from crosstie.workers import audit_listeners
from crosstie.workers.audit import run_audit


def test_orphaned_articles_are_found(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An article of an author that is gone, and none of the others; the pager rings once. An uncounted loan."""
    with registry.isolated():
        registry._models.clear()
        registry.generation += 1
        monkeypatch.setattr(audit_listeners, "_listeners", [])
        page = run_document("docs/audit.md", name="audit_page")
        monkeypatch.setattr(audit_listeners, "_listeners", [page.alert])
        page.Author.create_table()
        page.Article.create_table()
        author = page.Author(name="ada").save()
        page.Article(author_id=author.id).save()
        page.Article(author_id=None).save()
        assert page.orphaned_articles() == []

        orphan = page.Article(author_id=author.id + 1).save()
        assert page.orphaned_articles() == [orphan.id]
        (told,) = page.pager
        assert told.endswith("findings, 1 orphan rows")

        page.Reader.create_table()
        page.Loan.create_table()
        reader = page.Reader().save()
        page.lend(reader)
        (counter,) = run_audit().counters
        assert (counter.state, counter.parents_checked) == (AuditState.OK, 1)
        page.Loan(reader_id=reader.id).save()
        for name in configured.by_name:
            sweep_sagas(name)
        (counter,) = run_audit().counters
        assert [(one.expected, one.found) for one in counter.findings] == [(2, 1)]
