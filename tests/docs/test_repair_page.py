"""The example of docs/repair.md runs, and does what the page says."""

from __future__ import annotations

import pytest

from bench.databases import Pair
from bench.documents import run_document
from crosstie.workers.repair import recreation


def test_authors_are_made_anew_and_taken_back(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are missing, and no others."""
    monkeypatch.setattr(recreation, "_makers", {})
    page = run_document("docs/repair.md", name="repair_page")
    page.Author.create_table()
    page.Article.create_table()
    ada = page.Author(name="ada").save()
    for author_id in (ada.id, ada.id, 77):
        page.Article(author_id=author_id).save()
    repair_id = page.give_authors()
    assert configured.first.rows("SELECT id, name FROM authors ORDER BY id") == [(ada.id, "ada"), (77, "unknown")]
    assert page.take_back(repair_id) == []
    assert configured.first.rows("SELECT id FROM authors") == [(ada.id,)]
