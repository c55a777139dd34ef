"""`crosstie audit` and what belongs to it: without the name of a command of its own, it runs an audit."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperGroup

from crosstie.workers.audit_command import audit
from crosstie.workers.audit_triggers_command import triggers
from crosstie.workers.repair_command import repair, show_repairs, undo

__all__ = ["audits"]

DEFAULT: Final = "run"


class _RunsByDefault(TyperGroup):
    """What does not begin with the name of a command is meant for `run`: references, and options such as --json."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


audits = typer.Typer(
    cls=_RunsByDefault,
    help="Find rows whose parent, in another database, does not exist (`crosstie audit run -h`), and repair them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
audits.command(DEFAULT)(audit)
audits.command("triggers")(triggers)
audits.command("repair")(repair)
audits.command("repairs")(show_repairs)
audits.command("undo")(undo)
