"""The example of docs/audit.md runs, and finds what the page says."""

from __future__ import annotations

from bench.databases import Pair
from bench.documents import run_document


def test_orphaned_articles_are_found(configured: Pair) -> None:
    """An article of an author that is gone, and none of the others."""
    page = run_document("docs/audit.md", name="audit_page")
    page.Author.create_table()
    page.Article.create_table()
    author = page.Author(name="ada").save()
    page.Article(author_id=author.id).save()
    page.Article(author_id=None).save()
    assert page.orphaned_articles() == []

    orphan = page.Article(author_id=author.id + 1).save()
    assert page.orphaned_articles() == [orphan.id]
