"""What the commands that look into the databases have in common: options, databases, output for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, TypeVar

import typer

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.workers import presentation
from crosstie.workers.preparation import prepare

__all__ = [
    "INCOMPLETE",
    "AsJson",
    "Asked",
    "Databases",
    "EventId",
    "FromSql",
    "Imports",
    "Key",
    "Route",
    "ShowPayload",
    "ask",
    "print_json",
    "sources",
]

T = TypeVar("T")
FORMAT_VERSION: Final = 1
INCOMPLETE: Final = 2
"""Exit status where a database could not be asked."""

AsJson = Annotated[bool, typer.Option("--json", help="For programs: one JSON document.")]
Databases = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        "-d",
        help="A database that is meant; may be repeated. Without any, all.",
        show_default=False,
    ),
]
Route = Annotated[
    str | None, typer.Option("--route", "-r", help="A route: where the events go to.", show_default=False)
]
Key = Annotated[str | None, typer.Option("--key", "-k", help="The key of events.", show_default=False)]
EventId = Annotated[int | None, typer.Option("--id", help="The id of one event.", show_default=False)]
ShowPayload = Annotated[
    bool, typer.Option("--show-payload", help="Also the payload and the headers, which may hold personal data.")
]
FromSql = Annotated[
    list[str] | None,
    typer.Option(
        "--from-sql",
        metavar="REFERENCE",
        help='A reference without models, "legacy.orders.user_id -> main.users.id"; may be repeated.',
        show_default=False,
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        "-i",
        metavar="MODULE",
        help="A module with models or subscribers; may be repeated.",
        show_default=False,
    ),
]


def sources(databases: list[str] | None, imports: list[str] | None) -> list[str]:
    """Prepare, and return the databases that are meant. Raises UnknownConnection."""
    prepare(imports)
    if not databases:
        return list(ConnectionManager.names(writable=True))
    return [ConnectionManager.get(name).name for name in databases]


@dataclass
class Asked(Generic[T]):
    """What the databases answered, and the errors of those that did not."""

    found: list[T] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """2 where a database could not be asked."""
        return INCOMPLETE if self.errors else 0

    def show_errors(self) -> None:
        """On standard error, by database."""
        for name, error in self.errors.items():
            presentation.show_error(f"{name}: {error}")

    def document(self, name: str, items: Iterable[Any]) -> dict[str, Any]:
        """For programs."""
        return {"version": FORMAT_VERSION, name: list(items), "errors": self.errors}


def ask(names: Iterable[str], read: Callable[[str], Iterable[T]]) -> Asked[T]:
    """Read from each database; one that fails keeps the others from nothing."""
    asked: Asked[T] = Asked()
    for name in names:
        try:
            asked.found += read(name)
        except CrosstieError as error:
            asked.errors[name] = str(error)
    return asked


def print_json(document: Any, *, one_line: bool = False) -> None:
    """One document on standard output; what JSON does not know is written as its text."""
    typer.echo(json.dumps(document, indent=None if one_line else 2, default=str, ensure_ascii=False))
