"""A validated reference: a record is saved only where the row that it refers to exists."""

from __future__ import annotations

from typing import Any

import pytest

from bench.databases import Pair
from crosstie.orm import transaction
from crosstie.orm.errors import RecordInvalid
from crosstie.sagas import saga
from references.family import count, open_family, user_with


@pytest.fixture
def family(configured: Pair) -> Any:
    """The models, over every pair of databases."""
    return open_family()


def test_a_parent_that_does_not_exist_is_refused(family: Any, configured: Pair) -> None:
    """When the record is inserted and when its reference changes; the message names the reference and the key."""
    with pytest.raises(RecordInvalid, match=r"Invoice\.user: expected .*User with id = 77 in database 'default'"):
        family.Invoice(user_id=77).save()
    invoice = family.Invoice(user_id=user_with(family).id).save()
    with pytest.raises(RecordInvalid, match="id = 78"):
        invoice.update(user_id=78)
    assert count(configured, "invoices") == count(configured, "invoices", "user_id = 1") == 1


def test_many_records_at_once_are_validated_too(family: Any, configured: Pair) -> None:
    """None of them is saved where one parent is missing."""
    user = user_with(family)
    with pytest.raises(RecordInvalid, match="id = 77"):
        family.Invoice.bulk_create([family.Invoice(user_id=key) for key in (user.id, 77)])
    family.Invoice.bulk_create([family.Invoice(user_id=user.id) for _ in range(2)])
    assert count(configured, "invoices") == 2


def test_what_did_not_change_is_not_asked_for_again(family: Any, configured: Pair) -> None:
    """A row whose parent has vanished since can still be saved for another reason, or repaired."""
    user, other = user_with(family), user_with(family)
    invoice = family.Invoice(user_id=user.id).save()
    configured.first.execute(f"DELETE FROM users WHERE id = {user.id}")
    assert invoice.save() is invoice
    invoice.update(user_id=other.id)
    assert count(configured, "invoices", f"user_id = {other.id}") == 1


def test_a_parent_of_the_same_open_transaction_is_seen(family: Any, configured: Pair) -> None:
    """In a saga and in a plain transaction; and one that was deleted there is gone."""
    with saga("invoice"):
        user = family.User().save()
        family.Invoice(user_id=user.id).save()
    with pytest.raises(RecordInvalid), saga("invoice"):
        gone = family.User().save()
        family.User.find_all().where(id=gone.id).delete_all()
        family.Invoice(user_id=gone.id).save()
    with pytest.raises(RecordInvalid), transaction("secondary"):
        family.Invoice(user_id=99).save()
    assert count(configured, "invoices") == 1


def test_null_refers_to_nothing_and_passes(configured: Pair) -> None:
    """A reference that may be empty is checked where it is not."""
    from typing import ClassVar

    from crosstie.orm import ActiveRecord
    from crosstie.orm.field import IntegerPKMixin
    from crosstie.orm.relation import BelongsTo

    class Owner(IntegerPKMixin, ActiveRecord):
        __table_name__ = "owners"
        __connection__ = "default"

    class Thing(IntegerPKMixin, ActiveRecord):
        __table_name__ = "things"
        __connection__ = "secondary"

        owner_id: int | None = None
        owner: ClassVar[BelongsTo[Owner]] = BelongsTo(foreign_key="owner_id", validate=True)

    Owner.create_table()
    Thing.create_table()
    thing = Thing().save()
    with pytest.raises(RecordInvalid):
        thing.update(owner_id=1)
    thing.refresh().update(owner_id=Owner().save().id)
    thing.update(owner_id=None)
    assert configured.second.scalar("SELECT count(*) FROM things WHERE owner_id IS NULL") == 1
