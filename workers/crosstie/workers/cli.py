"""The command `crosstie`."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, Final, cast

import typer

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.errors import CrosstieError
from crosstie.outbox import trigger
from crosstie.outbox.migrations import current_version, newest_version
from crosstie.outbox.tables import create_tables
from crosstie.workers import presentation
from crosstie.workers.audit_group import audits
from crosstie.workers.command_options import AsJson, Imports, print_json
from crosstie.workers.copies_command import backfill_copies, verify_copies
from crosstie.workers.deployment import deployment_jobs
from crosstie.workers.map_command import map_models
from crosstie.workers.metrics_command import serve_metrics
from crosstie.workers.outbox_command import outbox
from crosstie.workers.preparation import prepare
from crosstie.workers.runs_command import runs
from crosstie.workers.sagas_command import sagas
from crosstie.workers.status import read_status
from crosstie.workers.sweep import sync_subscriptions

__all__ = ["cli", "main"]

FAILED: Final = 1
REFUSED: Final = 2

cli = typer.Typer(
    help="Keep data consistent across several databases.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Pool(StrEnum):
    """The pools that a worker can run its tasks in."""

    PREFORK = "prefork"
    SOLO = "solo"
    THREADS = "threads"


class LogLevel(StrEnum):
    """How much a worker or a beat writes to its log."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crosstie {importlib.metadata.version('crosstie')}")
        raise typer.Exit


@cli.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep data consistent across several databases."""


def _celery(arguments: list[str]) -> int:
    from crosstie.workers.application import app

    return cast("int | None", app.start(arguments)) or 0


@cli.command()
def init(
    triggers: Annotated[
        bool,
        typer.Option(
            "--triggers",
            help="Also create delete triggers on the tables that references with on_delete=cascade or set_null lead "
            "to, so that deletes by raw SQL are acted upon too.",
        ),
    ] = False,
    drop_triggers: Annotated[
        bool,
        typer.Option(
            "--drop-triggers", help="Drop every trigger of crosstie's, those of `crosstie audit triggers` too."
        ),
    ] = False,
    imports: Imports = None,
) -> None:
    """Bring crosstie's tables in every writable database to the newest version, and write the subscriptions into them.

    Safe to repeat: what exists is left as it is.
    """
    if triggers and drop_triggers:
        presentation.show_error("expected one of --triggers and --drop-triggers, and found both.")
        raise typer.Exit(REFUSED)
    prepare(imports)
    failed = False
    for name in ConnectionManager.names(writable=True):
        database = ConnectionManager.get(name)
        try:
            before = current_version(database)
            made = create_tables(database)
            report = sync_subscriptions(name)
            dropped = trigger.drop_triggers(database) if drop_triggers else []
            created = trigger.create_triggers(database) if triggers else []
        except CrosstieError as error:
            failed = True
            presentation.show_error(str(error))
        else:
            presentation.show_line(
                f"{name} ({database.settings.address()}): "
                + (f"created {', '.join(made)}" if made else "all tables exist")
                + (f"; upgraded from version {before} to {newest_version()}" if 0 < before < newest_version() else "")
                + "".join(f"; events {type_!r} go to {route!r}" for route, type_ in report.added.get(name, ()))
                + "".join(f"; deletes from {one.table!r} are told by trigger {one.name}" for one in created)
                + "".join(f"; dropped trigger {one.name} of {one.table!r}" for one in dropped)
            )
    if failed:
        raise typer.Exit(REFUSED)


@cli.command()
def worker(
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", min=1, help="Processes or threads; the number of CPUs if not given."),
    ] = None,
    pool: Annotated[Pool, typer.Option("--pool", "-P", help="What tasks run in.")] = Pool.PREFORK,
    loglevel: Annotated[LogLevel, typer.Option("--loglevel", "-l", case_sensitive=False)] = LogLevel.INFO,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="The worker's name, if several run on one machine.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Run a Celery worker that finishes sagas, delivers events and prunes records, until it is told to stop."""
    prepare(imports)
    deployment_jobs()
    arguments = ["worker", "--loglevel", loglevel.value, "--pool", pool.value]
    # Workers of crosstie have nothing to say to each other; the databases' rows say it all.
    arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    arguments += ["--concurrency", str(concurrency)] if concurrency else []
    arguments += ["--hostname", name if "@" in name else f"{name}@%h"] if name else []
    raise typer.Exit(_celery(arguments))


@cli.command()
def beat(
    loglevel: Annotated[LogLevel, typer.Option("--loglevel", "-l", case_sensitive=False)] = LogLevel.INFO,
    imports: Imports = None,
) -> None:
    """Run a Celery beat; optional, since workers do what is due by themselves."""
    prepare(imports)
    raise typer.Exit(_celery(["beat", "--loglevel", loglevel.value]))


@cli.command()
def status(as_json: AsJson = False, imports: Imports = None) -> None:
    """Show whether the databases answer, and which sagas and events in them are unfinished.

    Exit status 1 if a database does not answer or lacks crosstie's tables.
    """
    prepare(imports)
    found = read_status()
    if as_json:
        print_json({"databases": [asdict(one) for one in found]})
    else:
        presentation.show_status(found)
    if not all(one.healthy for one in found):
        raise typer.Exit(FAILED)


@cli.command()
def sweep(
    once: Annotated[bool, typer.Option("--once", help="Sweep every database once, then end: for cron.")] = False,
    imports: Imports = None,
) -> None:
    """Do a worker's work without Celery: finish sagas and deliver events by looking for them.

    Exit status 1 if a database could not be swept.
    """
    prepare(imports)
    from crosstie.workers.foreground import sweep_forever, sweep_once

    if not once:
        raise typer.Exit(sweep_forever())
    if not sweep_once():
        raise typer.Exit(FAILED)


cli.command("map")(map_models)
cli.command("backfill")(backfill_copies)
cli.command("verify-copies")(verify_copies)
cli.command("metrics")(serve_metrics)
cli.add_typer(audits, name="audit")
cli.add_typer(outbox, name="outbox")
cli.add_typer(sagas, name="sagas")
cli.add_typer(runs, name="runs")


def main(arguments: list[str] | None = None) -> Any:
    """The console script: an error of ours is a message and exit status 2, never a traceback."""
    try:
        return cli(arguments, prog_name="crosstie")
    except CrosstieError as error:
        presentation.show_error(str(error))
        sys.exit(REFUSED)
