from __future__ import annotations

from typing import ClassVar

import pytest

from bench.databases import Trio
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.field import IntegerPKMixin
from crosstie.orm.relation import BelongsTo, HasMany, HasOne, ManyToMany
from crosstie.orm.statement_log import logged_statements
from orm.club import Event, Membership, Person, Tag, Team, create_club, seed_club


@pytest.fixture
def club(configured_trio: Trio) -> Trio:
    """Three databases: people and events, memberships and taggings, teams and tags."""
    create_club()
    seed_club()
    return configured_trio


def names(found: list[Team] | list[Tag]) -> list[str]:
    """What they are called, in their order."""
    return [one.name for one in found]


def test_teams_are_reached_over_memberships_in_another_database(club: Trio) -> None:
    """Lazily: one query for each table, in the order of the memberships, each team once."""
    ann, cid = Person.find(1), Person.find(3)
    with logged_statements() as log:
        assert names(ann.teams()) == ["team3", "team1", "team2"]
        assert ann.teams() is ann.teams()
    assert log.by_database == {"secondary": 1, "tertiary": 1}
    assert names(ann.teams.query().order_by("-name").all()) == ["team3", "team2", "team1"]
    assert ann.teams.count() == ann.teams.query().count() == 3
    with logged_statements() as log:
        assert cid.teams() == []
        assert Person(name="new").teams() == []
        assert Person(name="new").team() is None
    assert log.by_database == {"secondary": 1}  # a membership of no team leads to no team
    assert Person(name="new").teams.query().all() == []


def test_teams_of_many_people_are_one_query_for_each_table(club: Trio) -> None:
    """Eagerly: every person has what was asked for lazily above."""
    with logged_statements() as log:
        people = Person.find_all().with_("teams", "team", "teams.badges", "badges").order_by("id").all()
    assert log.by_database == {"default": 1, "secondary": 3, "tertiary": 5}
    with logged_statements() as log:
        assert [names(person.teams()) for person in people] == [["team3", "team1", "team2"], ["team1"], [], []]
        firsts = [person.team() for person in people]
        assert [None if team is None else team.name for team in firsts] == ["team3", "team1", None, None]
        assert [[badge.label for badge in person.badges()] for person in people] == [
            ["badge3", "badge1", "badge2"],
            ["badge1"],
            [],
            [],
        ]
        assert [badge.label for team in people[0].teams() for badge in team.badges()] == ["badge3", "badge1", "badge2"]
    assert len(log) == 0


def test_one_row_is_reached_over_a_reference(club: Trio) -> None:
    """`HasOne` may lead over a `BelongsTo`; a NULL or dangling reference leads nowhere, a new record's leads on."""
    badges = [membership.badge() for membership in Membership.find_all().with_("badge").order_by("id")]
    assert [None if badge is None else badge.label for badge in badges] == [
        "badge3",
        "badge1",
        "badge2",
        "badge3",
        "badge1",
        None,
        None,
    ]
    lazy = Membership.find(1).badge()
    assert lazy is not None
    assert lazy.label == "badge3"
    unsaved = Membership(person_id=1, team_id=2).badge()
    assert unsaved is not None
    assert unsaved.label == "badge2"


def test_many_to_many_with_the_join_table_in_a_third_database(club: Trio) -> None:
    """Both ways, lazily and eagerly, one query for each table."""
    with logged_statements() as log:
        assert names(Event.find(1).tags()) == ["green", "red"]
    assert log.by_database == {"default": 1, "secondary": 1, "tertiary": 1}
    with logged_statements() as log:
        events = Event.find_all().with_("tags", "tags.events").order_by("id").all()
        assert [names(event.tags()) for event in events] == [["green", "red"], ["green", "blue"], []]
        green = events[0].tags()[0]
        assert [event.title for event in green.events()] == ["event1", "event2"]
    assert log.by_database == {"default": 2, "secondary": 2, "tertiary": 1}
    assert events[1].tags()[0] is green
    assert [event.title for event in Tag.find(2).events.query().order_by("id")] == ["event1", "event2"]
    assert [names(person.tags()) for person in Person.find_all().with_("tags").order_by("id")] == [
        ["green", "red", "blue"],
        [],
        [],
        [],
    ]
    assert Tag(name="new").events() == []


def test_an_order_given_is_the_order_kept(club: Trio) -> None:
    """With `order_by` the far side's order counts, not that of the rows in between."""
    ranked = Person.find_all().with_(teams=lambda teams: teams.order_by("rank")).order_by("id").all()
    assert [names(person.teams()) for person in ranked] == [["team3", "team2", "team1"], ["team1"], [], []]
    ann = Person.find_all().with_(team=lambda teams: teams.order_by("-rank").where(Team.c.rank < 3)).first()
    assert ann is not None
    first = ann.team()
    assert first is not None
    assert first.name == "team2"


class Member(IntegerPKMixin, ActiveRecord):
    __table_name__ = "members"
    __connection__ = "default"

    id: int | None = None
    name: str

    follows: ClassVar[ManyToMany[Member]] = ManyToMany(
        through="Follow", foreign_key="follower_id", target_key="followed_id"
    )
    followers: ClassVar[ManyToMany[Member]] = ManyToMany(
        through="Follow", foreign_key="followed_id", target_key="follower_id"
    )
    follows_of_followers: ClassVar[HasMany[Member]] = HasMany(through="followers", source="follows")


class Follow(IntegerPKMixin, ActiveRecord):
    __table_name__ = "follows"
    __connection__ = "secondary"

    follower_id: int
    followed_id: int


class Chief(Member):
    """The same table, seen as another model."""


def test_a_model_tied_to_itself_over_a_join_model_without_relations(configured_trio: Trio) -> None:
    """The two fields are named; each direction is a relation of its own, and a subclass has both."""
    Member.create_table()
    Follow.create_table()
    for name in ("ann", "bob", "cid"):
        Member(name=name).save()
    for follower_id, followed_id in ((1, 2), (1, 3), (2, 3), (3, 1)):
        Follow(follower_id=follower_id, followed_id=followed_id).save()
    for model in (Member, Chief):
        ann, bob, cid = model.find_all().with_("follows", "followers", "follows_of_followers").order_by("id")
        assert [[one.name for one in each.follows()] for each in (ann, bob, cid)] == [["bob", "cid"], ["cid"], ["ann"]]
        assert [[one.name for one in each.followers()] for each in (ann, bob, cid)] == [
            ["cid"],
            ["ann"],
            ["ann", "bob"],
        ]
        assert [one.name for one in cid.follows_of_followers()] == ["bob", "cid"]
        assert [one.name for one in model.find(1).follows()] == ["bob", "cid"]
        assert model.find(1).follows.query().where(name="cid").count() == 1
        followed = model.find_all().where_has("followers", lambda members: members.where(name="bob"))
        assert followed.pluck("name") == ["cid"]
        assert model.find_all().where_missing("follows", lambda members: members.where(name="cid")).pluck("id") == [3]


def test_chains_that_lead_nowhere_say_why() -> None:
    """Every mistake in a declaration names the model, the relation, and what was found."""

    class Knot(IntegerPKMixin, ActiveRecord):
        __table_name__ = "knots"
        __connection__ = "default"

        rope_id: int
        other_id: int

        rope: ClassVar[BelongsTo[Rope]] = BelongsTo(foreign_key="rope_id")
        other: ClassVar[BelongsTo[Rope]] = BelongsTo(foreign_key="other_id")

    class Rope(IntegerPKMixin, ActiveRecord):
        __table_name__ = "ropes"
        __connection__ = "secondary"

        knots: ClassVar[HasMany[Knot]] = HasMany(foreign_key="rope_id")
        nothing: ClassVar[HasMany[Rope]] = HasMany(through="knotz")
        ropes: ClassVar[HasMany[Rope]] = HasMany(through="knots")
        tied: ClassVar[HasMany[Rope]] = HasMany(through="knots", source="other")
        wrong: ClassVar[HasOne[Knot]] = HasOne(through="knots", source="other")
        circle: ClassVar[HasMany[Rope]] = HasMany(through="spiral")
        spiral: ClassVar[HasMany[Rope]] = HasMany(through="circle")
        many: ClassVar[ManyToMany[Rope]] = ManyToMany(through="Knot")
        named: ClassVar[ManyToMany[Rope]] = ManyToMany(through="Knot", foreign_key="rope_id")
        missing: ClassVar[ManyToMany[Rope]] = ManyToMany(through="Knot", foreign_key="rope", target_key="other_id")

    rope = Rope(id=1)
    assert rope.tied() == []
    assert rope.named() == []
    for name, message in {
        "nothing": r"Rope\.nothing: .*Rope has no relation 'knotz'",
        "ropes": r"Rope\.ropes: expected one relation of .*Knot that leads to .*Rope, and found 'rope', 'other'",
        "wrong": r"Rope\.wrong: expected to reach .*Knot, and 'knots' leads to .*Rope",
        "circle": r"Rope\.circle: its `through` leads back to itself",
        "many": r"Rope\.many: expected one BelongsTo of .*Knot that leads to .*Rope, and found 'rope_id', 'other_id'",
        "missing": r"Rope\.missing: .*Knot has no field 'rope'",
    }.items():
        with pytest.raises(ModelDefinitionError, match=message):
            getattr(rope, name)()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"foreign_key": "a", "through": "b"},
        {"foreign_key": "a", "source": "b"},
        {"through": "a", "inverse_of": "b"},
    ],
)
def test_a_relation_is_direct_or_leads_over_another(arguments: dict[str, str]) -> None:
    """Half of each is refused where it is declared."""
    with pytest.raises(ModelDefinitionError, match="HasMany"):
        HasMany(**arguments)
