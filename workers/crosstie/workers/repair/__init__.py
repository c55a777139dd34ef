"""Repairs of orphans: what a policy does, kept in a quarantine, undone on demand."""

from crosstie.workers.repair.errors import RepairRefused, UnknownRepair
from crosstie.workers.repair.policy import Cap, Outcome, Policy, RepairedRow, RepairReport
from crosstie.workers.repair.recreation import ParentMaker, recreates
from crosstie.workers.repair.repairer import repair_reference
from crosstie.workers.repair.undo import RestoredRow, UndoReport, undo_repair

__all__ = [
    "Cap",
    "Outcome",
    "ParentMaker",
    "Policy",
    "RepairRefused",
    "RepairReport",
    "RepairedRow",
    "RestoredRow",
    "UndoReport",
    "UnknownRepair",
    "recreates",
    "repair_reference",
    "undo_repair",
]
