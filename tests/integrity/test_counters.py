"""Counter caches: columns that are to be the number of children in another database."""

from __future__ import annotations

import json
import uuid
from collections import Counter as Numbers
from collections.abc import Callable, Collection
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.databases import Pair, Trio
from bench.faults import crash_at
from crosstie.orm import ActiveRecord
from crosstie.orm.errors import ModelDefinitionError
from crosstie.orm.faults import FaultInjected
from crosstie.orm.field import CounterCache, IntegerPKMixin, SoftDeleteMixin
from crosstie.orm.integrity import AuditScope, AuditState
from crosstie.orm.integrity.counters import CounterResult, audit_counter
from crosstie.orm.relation import BelongsTo, HasMany
from crosstie.sagas import saga, sweep_sagas
from crosstie.workers.audit import run_audit
from crosstie.workers.audit_counters import counter_column
from crosstie.workers.audit_page import audit_page
from crosstie.workers.errors import UnknownColumn
from crosstie.workers.metrics import exposition

POSTS = "default.users.posts_count = count(secondary.posts.user_id)"
FEW = pytest.mark.parametrize(
    "pair", [("sqlite", "sqlite"), ("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join
)
ONE = pytest.mark.parametrize("pair", [("sqlite", "postgresql")], indirect=True, ids="-".join)
INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.one_of(st.integers(-6, 6), INT64, st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, -(2**63)]))


def create(pair: Pair, first: str = "BIGINT", second: str = "BIGINT") -> None:
    """Users in the first database, posts in the second, without models; and the types of the key at both ends."""
    pair.first.execute(f"CREATE TABLE users (id {first} NOT NULL PRIMARY KEY, posts_count INTEGER)")
    pair.second.execute(f"CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id {second})")
    pair.second.execute("CREATE INDEX posts_user ON posts (user_id)")


def fill(pair: Pair, counts: dict[Any, int | None], children: list[Any]) -> None:
    """Users with these counters, and posts of these users."""
    pair.first.execute_many("INSERT INTO users (id, posts_count) VALUES (%s, %s)", list(counts.items()))
    pair.second.execute_many("INSERT INTO posts (id, user_id) VALUES (%s, %s)", list(enumerate(children)))


def audited(**options: Any) -> CounterResult:
    """The counter alone."""
    return audit_counter(counter_column(POSTS), **options)


def wrong(result: CounterResult) -> dict[Any, tuple[int, Any]]:
    """User → expected and found."""
    return {one.parent_key["id"]: (one.expected, one.found) for one in result.findings}


def test_the_audit_agrees_with_brute_force(configured: Pair) -> None:
    """Parents and children drawn at random: orphans, NULLs, parents without children, and pages of every size."""
    create(configured)

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(
        parents=st.dictionaries(KEYS, st.one_of(st.none(), st.integers(-1, 3)), max_size=20),
        right=st.integers(0, 20),
        children=st.lists(st.one_of(st.none(), KEYS), max_size=30),
        adopted=st.lists(st.integers(0, 19), max_size=15),
        page_size=st.integers(1, 25),
    )
    def compare(
        parents: dict[int, int | None],
        right: int,
        children: list[int | None],
        adopted: list[int],
        page_size: int,
    ) -> None:
        children = children + [list(parents)[number] for number in adopted if number < len(parents)]
        numbers = Numbers(children)
        counts = parents | {key: numbers[key] for key in list(parents)[:right]}
        configured.first.execute("DELETE FROM users")
        configured.second.execute("DELETE FROM posts")
        fill(configured, counts, children)

        result = audited(page_size=page_size)

        assert result.reason is None
        assert wrong(result) == {key: (numbers[key], found) for key, found in counts.items() if numbers[key] != found}
        assert result.parents_checked == len(counts)

    compare()


@pytest.mark.parametrize("pair", [("postgresql", "mariadb"), ("mariadb", "postgresql")], indirect=True, ids="-".join)
@pytest.mark.parametrize("second", ["UUID", "CHAR(36)"])
def test_uuids_are_counted_in_whatever_form(configured: Pair, second: str) -> None:
    """Native types and text in either case of letters; each database in its own order."""
    create(configured, "UUID", second)
    keys = [uuid.uuid5(uuid.NAMESPACE_DNS, str(number)) for number in range(30)]
    children = [str(key).upper() if time else str(key) for n, key in enumerate(keys) for time in range(n % 4)]
    fill(configured, {str(key): number % 4 + (number == 7) for number, key in enumerate(keys)}, children)
    result = audited(page_size=4)
    assert (result.parents_checked, result.reason, result.differing) == (30, None, 1)
    assert [(str(uuid.UUID(str(key))), pair) for key, pair in wrong(result).items()] == [(str(keys[7]), (3, 4))]


class Sagas:
    """Stands for the records of sagas, and what happens at the n-th look at them."""

    def __init__(self, *values: str) -> None:
        self.found: Collection[str] | None = values
        self.looks = 0
        self.at: dict[int, Callable[[], Any]] = {}

    def values(self, database: str, table: str, column: str, /, *, since_ms: int) -> Collection[str] | None:
        del database, since_ms
        if (table, column) != ("posts", "user_id"):
            return ()
        self.looks += 1
        self.at.pop(self.looks, lambda: None)()
        return self.found


@FEW
def test_what_changes_under_the_audit_is_no_finding(configured: Pair) -> None:
    """A counter that follows its child, a saga that is seen at the second look, one of which nobody can tell."""
    create(configured)
    fill(configured, {1: 1, 2: 5, 3: 0}, [1, 1])
    sagas = Sagas()
    sagas.at[1] = lambda: configured.first.execute("UPDATE users SET posts_count = 2 WHERE id = 1")
    assert wrong(audited(values=sagas.values)) == {2: (0, 5)}

    sagas = Sagas()
    sagas.at[2] = lambda: setattr(sagas, "found", ("2",))
    result = audited(values=sagas.values)
    assert (wrong(result), result.deferred, result.state) == ({}, 1, AuditState.OK)

    sagas = Sagas()
    sagas.found = None
    result = audited(values=sagas.values)
    assert (wrong(result), result.deferred) == ({}, 1)

    sagas = Sagas("2")
    sagas.at[3] = lambda: setattr(sagas, "found", ())
    assert wrong(audited(values=sagas.values)) == {2: (0, 5)}, "resolved before the end"


@ONE
def test_a_counter_that_changes_between_two_looks_waits(configured: Pair) -> None:
    """It is looked at again at the end, and with a grace whatever differed is."""
    create(configured)
    fill(configured, {1: 5, 2: 7}, [])
    counter = counter_column(POSTS)
    numbers = iter(range(10, 100))

    def touched(name: str, /, *, since_ms: int) -> tuple[()]:
        configured.first.execute("UPDATE users SET posts_count = %s WHERE id = 1", (next(numbers),))
        return ()

    result = audit_counter(counter, suspects=touched)
    assert wrong(result)[2] == (0, 7)

    def follow(_: float) -> None:
        configured.first.execute("UPDATE users SET posts_count = 0 WHERE id = 2")

    assert set(wrong(audit_counter(counter, grace_s=5, wait=follow))) == {1}


@pytest.fixture
def shop(configured: Pair, no_models: None) -> tuple[Any, Any]:
    """A user model with a counter of posts, which are in the other database; and their tables."""

    class User(IntegerPKMixin, ActiveRecord):
        __table_name__ = "users"
        __connection__ = "default"

        id: int | None = None
        posts_count: Annotated[int, CounterCache("posts")] = 0

        posts: ClassVar[HasMany[Post]] = HasMany(foreign_key="user_id")

    class Post(IntegerPKMixin, ActiveRecord):
        __table_name__ = "posts"
        __connection__ = "secondary"

        id: int | None = None
        user_id: int | None = None

        user: ClassVar[BelongsTo[User]] = BelongsTo(foreign_key="user_id")

    User.create_table()
    Post.create_table()
    return User, Post


def write(shop: tuple[Any, Any], user: Any, *, home: str) -> None:
    """A post and its counter, as one outcome."""
    with saga("write", home=home):
        shop[1](user_id=user.id).save()
        user.increment(posts_count=1)


@pytest.mark.turns("pair")
@FEW
@pytest.mark.parametrize("home", ["default", "secondary"])
def test_half_a_saga_is_deferred(configured: Pair, shop: tuple[Any, Any], home: str) -> None:
    """Whichever of the two it has written; also a child that it has deleted or given to another, whose key is gone."""
    user, post = shop
    users = [user().save() for _ in range(4)]
    for one in users[:3]:
        write(shop, one, home=home)
    assert run_audit().counters[0].state is AuditState.OK

    def halfway(change: Callable[[], object]) -> None:
        with (
            crash_at("saga.branch-committed"),
            crash_at("recovery.before-decision"),
            pytest.raises(FaultInjected),
            saga("half", home=home, expiry_s=3600),
        ):
            change()

    posts = {one.user_id: one for one in post.find_all().order_by("id").all()}
    gone, given = posts[users[1].id], posts[users[2].id]
    halfway(lambda: write(shop, users[0], home=home))
    halfway(lambda: (gone.delete(), users[1].increment(posts_count=-1)))
    halfway(
        lambda: (
            given.update(user_id=users[3].id),
            users[2].increment(posts_count=-1),
            users[3].increment(posts_count=1),
        )
    )
    drifted = user(posts_count=9).save()
    (result,) = run_audit().counters
    assert (wrong(result), result.deferred) == ({drifted.id: (0, 9)}, 4)
    configured.by_name[home].execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    other = configured.second if home == "default" else configured.first
    other.execute("UPDATE crosstie_saga SET expires_at_ms = 0")
    for name in ("default", "secondary"):
        sweep_sagas(name)
    (result,) = run_audit().counters
    assert (wrong(result), result.deferred) == ({drifted.id: (0, 9)}, 0)


@pytest.mark.turns("pair")
@FEW
def test_declared_counters_belong_to_audits(configured: Pair, shop: tuple[Any, Any]) -> None:
    """In the state, JSON, the page and the metrics; to audits of everything, and of the reference that they follow."""
    user, post = shop
    drifted, _ = user(posts_count=3).save(), user(posts_count=0).save()
    post(user_id=drifted.id).save()
    report = run_audit()
    assert (report.state, report.counters[0].name, wrong(report.counters[0])) == (
        AuditState.FINDINGS,
        POSTS,
        {drifted.id: (1, 3)},
    )
    (told,) = json.loads(report.to_json())["counters"]
    assert told["findings"] == [{"parent_key": {"id": drifted.id}, "expected": 1, "found": 3}]
    assert f"id={drifted.id}: 1 children, and the column says 3" in audit_page(report, {})
    labels = f'{{reference="{POSTS}",source="default"}}'
    assert f"crosstie_audit_wrong_counters{labels} 1.0\n" in exposition().decode()
    assert [len(run_audit([name]).counters) for name in ("posts.user_id",)] == [1]
    assert run_audit(scope=AuditScope.PART, parts=2).counters == ()
    drifted.update(posts_count=1)
    assert run_audit([], counters=[POSTS]).state is AuditState.OK


@pytest.mark.parametrize("trio", [("sqlite", "postgresql", "mariadb")], indirect=True, ids="-".join)
def test_children_in_several_databases_count_together(configured_trio: Trio) -> None:
    """Shards of one table."""
    configured_trio.first.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, posts_count INTEGER)")
    configured_trio.first.execute("INSERT INTO users VALUES (1, 3), (2, 1), (3, 0)")
    for shard, children in ((configured_trio.second, [1, 1, 2]), (configured_trio.third, [1, 3])):
        shard.execute("CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id INTEGER)")
        shard.execute_many("INSERT INTO posts VALUES (%s, %s)", list(enumerate(children)))
    text = "default.users.posts_count = count({secondary, tertiary}.posts.user_id)"
    (result,) = run_audit([], counters=[text]).counters
    assert (result.name, wrong(result)) == (text, {3: (1, 0)})


@ONE
def test_what_cannot_be_counted_is_incomplete(configured: Pair) -> None:
    """Or refused: a counter that is no integer, a key that is not unique, text that is equal in other ways."""
    create(configured)
    fill(configured, {1: 0}, [])
    with pytest.raises(UnknownColumn, match=r"expected a counter such as"):
        counter_column("users.posts_count")
    for text in (POSTS.replace("posts_count", "name"), POSTS.replace("secondary", "nowhere"), "anything"):
        (result,) = run_audit([], counters=[text]).counters
        assert (result.state, bool(result.reason)) == (AuditState.INCOMPLETE, True)
    configured.first.execute("ALTER TABLE users ADD COLUMN name VARCHAR(20)")
    (result,) = run_audit([], counters=[POSTS.replace("posts_count", "name")]).counters
    assert "expected a counter of an integer type" in (result.reason or "")
    configured.second.execute("DROP TABLE posts")
    (result,) = run_audit([], counters=[POSTS]).counters
    assert (result.state, "posts" in (result.reason or "")) == (AuditState.INCOMPLETE, True)


@ONE
def test_a_page_that_was_not_read_to_its_end_is_noticed(configured: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is counted in the same snapshot."""
    create(configured)
    fill(configured, {1: 0, 2: 0, 3: 0}, [])
    counter = counter_column(POSTS)
    from crosstie.orm.integrity.child import ChildColumn

    fetch = ChildColumn.fetch
    monkeypatch.setattr(ChildColumn, "fetch", lambda self, query: list(fetch(self, query))[:2])
    result = audit_counter(counter)
    assert (result.state, "2 parents with 2 keys were read" in (result.reason or "")) == (AuditState.INCOMPLETE, True)


@ONE
def test_what_a_counter_cannot_be_is_refused(configured: Pair, no_models: None) -> None:
    """When audits ask for the counters; the message says what was expected."""

    class Reader(IntegerPKMixin, ActiveRecord):
        __table_name__ = "readers"
        __connection__ = "default"

        loans_count: Annotated[int, CounterCache("loans")] = 0
        lost_count: Annotated[int, CounterCache("nothing")] = 0

        loans: ClassVar[HasMany[Loan]] = HasMany(foreign_key="reader_id")

    class Loan(IntegerPKMixin, SoftDeleteMixin, ActiveRecord):
        __table_name__ = "loans"
        __connection__ = "secondary"

        reader_id: int

    with pytest.raises(ModelDefinitionError, match="marks its rows deleted"):
        run_audit()
