"""Models over three databases: people and events in one, what joins them in another, teams and tags in a third."""

from __future__ import annotations

from typing import ClassVar

from crosstie.orm import ActiveRecord
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany, HasOne, ManyToMany

__all__ = ["Badge", "Event", "Membership", "Person", "Tag", "Tagging", "Team", "create_club", "seed_club"]


class Person(IntegerPKMixin, ActiveRecord):
    __table_name__ = "people"
    __connection__ = "default"

    id: int | None = None
    name: str

    memberships: ClassVar[HasMany[Membership]] = HasMany(foreign_key="person_id", inverse_of="person")
    teams: ClassVar[HasMany[Team]] = HasMany(through="memberships")
    team: ClassVar[HasOne[Team]] = HasOne(through="memberships")
    badges: ClassVar[HasMany[Badge]] = HasMany(through="teams")
    events: ClassVar[HasMany[Event]] = HasMany(foreign_key="host_id")
    tags: ClassVar[HasMany[Tag]] = HasMany(through="events", source="tags")


class Membership(IntegerPKMixin, ActiveRecord):
    __table_name__ = "memberships"
    __connection__ = "secondary"

    person_id: int
    team_id: int | None

    person: ClassVar[BelongsTo[Person]] = BelongsTo(foreign_key="person_id", inverse_of="memberships")
    team: ClassVar[BelongsTo[Team]] = BelongsTo(foreign_key="team_id")
    badge: ClassVar[HasOne[Badge]] = HasOne(through="team", source="badges")


class Team(IntegerPKMixin, ActiveRecord):
    __table_name__ = "teams"
    __connection__ = "tertiary"

    id: int | None = None
    name: str
    rank: int = 0

    badges: ClassVar[HasMany[Badge]] = HasMany(foreign_key="team_id")


class Badge(IntegerPKMixin, ActiveRecord):
    __table_name__ = "badges"
    __connection__ = "tertiary"

    team_id: int
    label: str


class Event(IntegerPKMixin, ActiveRecord):
    __table_name__ = "events"
    __connection__ = "default"

    id: int | None = None
    host_id: int | None = None
    title: str

    tags: ClassVar[ManyToMany[Tag]] = ManyToMany(through="Tagging")


class Tagging(IntegerPKMixin, ActiveRecord):
    __table_name__ = "taggings"
    __connection__ = "secondary"

    event_id: int
    tag_id: int | None

    event: ClassVar[BelongsTo[Event]] = BelongsTo(foreign_key="event_id")
    tag: ClassVar[BelongsTo[Tag]] = BelongsTo(foreign_key="tag_id")


class Tag(IntegerPKMixin, ActiveRecord):
    __table_name__ = "tags"
    __connection__ = "tertiary"

    id: int | None = None
    name: str

    events: ClassVar[ManyToMany[Event]] = ManyToMany(through="Tagging", foreign_key="tag_id", target_key="event_id")


def create_club() -> None:
    """Create the tables in all three databases."""
    for model in (Person, Membership, Team, Badge, Event, Tagging, Tag):
        model.create_table()


def seed_club() -> None:
    """Ann is in three teams, one of them twice; Bob in one; Cid's only membership is of no team; Dan has none."""
    for name in ("ann", "bob", "cid", "dan"):
        Person(name=name).save()
    for number, rank in ((1, 3), (2, 2), (3, 1)):
        Team(name=f"team{number}", rank=rank).save()
        Badge(team_id=number, label=f"badge{number}").save()
    for person_id, team_id in ((1, 3), (1, 1), (1, 2), (1, 3), (2, 1), (3, None), (2, 99)):
        Membership(person_id=person_id, team_id=team_id).save()
    for number, host_id in ((1, 1), (2, 1), (3, 2)):
        Event(title=f"event{number}", host_id=host_id).save()
    for name in ("red", "green", "blue"):
        Tag(name=name).save()
    for event_id, tag_id in ((1, 2), (1, 1), (2, 2), (2, 3), (3, None)):
        Tagging(event_id=event_id, tag_id=tag_id).save()
