"""The command `crosstie map`."""

from __future__ import annotations

from typing import Annotated

import typer

from crosstie.workers.model_map import MapFormat, draw, model_map

__all__ = ["map_models"]


def map_models(
    form: Annotated[
        MapFormat, typer.Option("--format", "-f", case_sensitive=False, help="What the map is written in.")
    ] = MapFormat.TEXT,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import", "-i", metavar="MODULE", help="A module with models; may be repeated.", show_default=False
        ),
    ] = None,
) -> None:
    """Show the models by database and the references that cross from one to another.

    No database is asked, and the same models give the same output.
    """
    from crosstie.workers.cli import prepare

    prepare(imports)
    typer.echo(draw(model_map(), form))
