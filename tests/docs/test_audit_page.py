"""The example of docs/audit.md runs, and finds what the page says."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.workers import audit_listeners


def test_orphaned_articles_are_found(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """An article of an author that is gone, and none of the others; the pager rings once."""
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
