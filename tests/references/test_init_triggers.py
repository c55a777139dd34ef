"""`crosstie init --triggers` and `--drop-triggers`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.databases import Pair
from crosstie.orm.connection import ConnectionManager
from crosstie.workers.cli import main

MODELS = """
from typing import ClassVar
import crosstie.outbox
from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo

class Shop(IntegerPKMixin, ActiveRecord):
    __table_name__ = "shops"
    __connection__ = "default"

class Shelf(IntegerPKMixin, ActiveRecord):
    __table_name__ = "shelves"
    __connection__ = "secondary"

    shop_id: int
    shop: ClassVar[BelongsTo[Shop]] = BelongsTo(foreign_key="shop_id", on_delete="cascade")
"""


def test_init_creates_and_drops_the_triggers_of_the_modules_that_it_imports(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, and says so; both options at once, and a table that is missing, are errors without a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CROSSTIE_IMPORTS", "[]")
    monkeypatch.setenv("CROSSTIE_CONNECTIONS", json.dumps(pair.configuration))
    (tmp_path / "triggers_shop.py").write_text(MODELS)
    ConnectionManager.dispose()

    def init(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["init", *options, "-i", "triggers_shop"])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((captured.out + captured.err).split())

    try:
        status, output = init("--triggers")
        assert (status, "shops" in output, "Traceback" in output) == (2, True, False)
        module = sys.modules["triggers_shop"]
        module.Shop.create_table()
        module.Shelf.create_table()
        status, output = init("--triggers")
        assert (status, output.count("deletes from 'shops' are told by trigger crosstie_deleted_")) == (0, 1)
        status, output = init("--triggers")
        assert (status, "trigger" in output) == (0, False)
        status, output = init("--drop-triggers")
        assert (status, output.count("dropped trigger crosstie_deleted_")) == (0, 1)
        status, output = init("--triggers", "--drop-triggers")
        assert (status, "found both" in output) == (2, True)
    finally:
        sys.modules.pop("triggers_shop", None)
