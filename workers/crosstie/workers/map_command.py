"""The command `crosstie map`."""

from __future__ import annotations

from typing import Annotated

import typer

from crosstie.workers.command_options import Imports
from crosstie.workers.model_map import MapFormat, draw, model_map
from crosstie.workers.preparation import prepare

__all__ = ["map_models"]


def map_models(
    form: Annotated[
        MapFormat, typer.Option("--format", "-f", case_sensitive=False, help="What the map is written in.")
    ] = MapFormat.TEXT,
    imports: Imports = None,
) -> None:
    """Show the models by database and the references that cross from one to another.

    No database is asked, and the same models give the same output.
    """
    prepare(imports)
    typer.echo(draw(model_map(), form))
