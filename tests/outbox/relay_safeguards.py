"""The safeguards of the relay's protocol, each of which the model (relay_model.py) can do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FULL", "Protocol"]


@dataclass(frozen=True)
class Protocol:
    """Which safeguards are in force."""

    target_fence: bool = True
    """The target refuses an owner whose epoch is older than the one that it has seen."""
    source_fence: bool = True
    """An acknowledgement is refused where the lane's epoch is no longer the owner's."""
    recovery: bool = True
    """A new owner first learns from the inbox what was applied, and acknowledges that."""
    explicit_ids: bool = True
    """Events are acknowledged by their ids, not by the range that they span."""
    from_the_start: bool = True
    """A lane is read from its first event, not from behind the last one that was acknowledged."""
    followers: bool = True
    """The later events of a key are parked together with the one that fails, and those to come behind it."""
    fresh_look: bool = True
    """Which keys are parked is read together with the events, not remembered from before the lane was claimed."""
    one_transaction: bool = True
    """An event is put into the parking and deleted from the outbox in one transaction."""
    parked_recovery: bool = True
    """The recovery acknowledges parked events too."""
    unpark_under_lease: bool = True
    """Nobody but the lane's owner takes an event out of the parking."""
    one_at_a_time: bool = True
    """What is applied is acknowledged before anything else is applied."""
    inheriting: bool = True
    """An owner that enters by its first batch leaves in the inbox what an earlier one has applied."""
    inherited_acknowledged: bool = True
    """That is acknowledged together with the batch, before the next one overwrites it."""
    entering_fence: bool = True
    """Such a batch shuts earlier owners out, as entering beforehand does."""
    settled_by_entered: bool = True
    """Nobody calls a lane in order who has never entered: an earlier owner may still apply something."""
    settled_claimed: bool = True
    """A claim compares whether the lane was given back in order, since an owner that does not know may go on."""
    writers_awaited: bool = True
    """An id is final once everybody has ended who may commit a smaller one, not as soon as it is read."""
    final_before_read: bool = True
    """A batch is all that there is up to an id which was final before it was read, not before it was acknowledged."""
    up_to_the_first_left: bool = True
    """A lane is read from behind its last event that is gone before which none is left, not behind all of a batch."""
    deaths_counted: bool = True
    """A lane counts the owners in a row that died; after three the next one is wary."""
    one_by_one: bool = True
    """A wary owner applies one event at a time."""
    trials_noted: bool = True
    """It writes down which, before; after two more deaths that one is parked, and not tried any more."""


FULL: Final = Protocol()
