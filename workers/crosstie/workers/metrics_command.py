"""The command `crosstie metrics`."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from crosstie.orm.connection import ConnectionManager
from crosstie.workers import metrics, presentation
from crosstie.workers.command_options import Imports
from crosstie.workers.keeper import Wakeup
from crosstie.workers.preparation import prepare

__all__ = ["serve_metrics"]

FAILED = 1


def serve_metrics(
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0: any that is free.")] = 9464,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; others than this machine need another one.")
    ] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Write the metrics to standard output, and end.")] = False,
    imports: Imports = None,
) -> None:
    """Serve Prometheus metrics of all databases, until told to stop.

    Counters and the histogram are those of the workers that share PROMETHEUS_MULTIPROC_DIR with this process.
    """
    prepare(imports)
    if once:
        typer.echo(metrics.exposition().decode(), nl=False)
        return
    wakeup = Wakeup(signal.SIGTERM, signal.SIGINT)
    try:
        bound, stop = metrics.serve(port, host)
    except OSError as error:
        presentation.show_error(f"metrics cannot be served at {host}:{port}: {error}. Choose another --port or --host.")
        raise typer.Exit(FAILED) from None
    presentation.show_line(f"metrics are served at http://{host}:{bound}/metrics")
    while not wakeup.stopping:
        wakeup.wait(1.0)
    stop()
    ConnectionManager.dispose()
