"""An audit of keys that somebody names: those that have changed, whatever else the table holds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, Final, Unpack

from crosstie.orm.errors import CrosstieError
from crosstie.orm.integrity.batch import rounds
from crosstie.orm.integrity.catalog import Equality
from crosstie.orm.integrity.columns import columns_of
from crosstie.orm.integrity.endpoint import AuditedReference
from crosstie.orm.integrity.errors import UnexpectedKey
from crosstie.orm.integrity.findings import AuditPhase, AuditResult, AuditScope, AuditState, Key
from crosstie.orm.integrity.judgement import Judgement, JudgementOptions
from crosstie.orm.integrity.plan import value_document, value_of
from crosstie.orm.integrity.storage import IntegerStorage, KeyKind, KeyStorage

__all__ = ["audit_keys", "noted", "tells_of_deletes"]

_KEYS_PER_ROUND: Final = 5_000


def tells_of_deletes(reference: AuditedReference) -> bool:
    """Whether the key of a deleted parent tells which keys of children referred to it.

    Not where the parent's `=` matches texts that are spelt otherwise: nobody can name all their spellings. Raises
    KeysNotComparable, NoSuchTable, DatabaseUnavailable.
    """
    _, parent = columns_of(reference)
    return parent.storage.equality is Equality.IDENTICAL


def audit_keys(
    reference: AuditedReference,
    texts: Iterable[str],
    *,
    without: Collection[Key] = (),
    **options: Unpack[JudgementOptions],
) -> AuditResult:
    """Look at these foreign keys of `reference` alone, and find those that a child row has and no parent.

    A key is the text that a database makes of it. Each is looked at once, however often it is named: whatever made
    anybody name it must be committed by now. Those in `without` are left out.
    Rows are deferred and confirmed as in any audit. Whatever keeps it from looking at all of them makes the state
    INCOMPLETE, with the reason.
    """
    judgement = Judgement(reference=reference, **options)
    start_s, tally, reason = judgement.clock_s(), judgement.tally, None
    try:
        child, parent = judgement.columns
        judged: set[Key] = set(without)
        for some in rounds(texts, _KEYS_PER_ROUND):
            judgement.tell(AuditPhase.SCANNING)
            named = _keys(child.storage, some) - judged
            judgement.keys += len(named)
            since = judgement.confirmation.now()
            candidates = parent.absent(list(named))
            judged |= named
            if candidates:
                judgement.judge(candidates, since)
        judgement.settle_held()
    except CrosstieError as error:
        reason = str(error)
    state = AuditState.FINDINGS if tally.orphan_keys else AuditState.OK
    return AuditResult(
        reference=reference.name,
        state=state if reason is None else AuditState.INCOMPLETE,
        keys_checked=judgement.keys,
        orphan_keys=tally.orphan_keys,
        orphan_rows=tally.orphan_rows,
        deferred_keys=tally.deferred_keys,
        deferred_rows=tally.deferred_rows,
        findings=tuple(tally.findings),
        seconds=judgement.clock_s() - start_s,
        reason=reason,
        scope=AuditScope.CHANGES,
        open_keys=tally.open_keys(),
    )


def noted(key: Key) -> str:
    """The text by which `audit_keys` takes a key."""
    return json.dumps(value_document(key)) if isinstance(key, tuple) else str(key)


def _keys(storage: KeyStorage, texts: Iterable[str]) -> set[Key]:
    """The keys of texts: of an integer that is no raw value; of several columns, JSON. Raises UnexpectedKey."""
    if isinstance(storage, IntegerStorage):
        numbers = [_integer(text) for text in texts]
        storage.keys(numbers)
        return set(numbers)
    if storage.kind is KeyKind.COMPOSITE:
        return {_tuple(text) for text in texts}
    return {storage.key(text) for text in texts}


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnexpectedKey(f"expected integer keys, found {text!r}") from None


def _tuple(text: str) -> tuple[Any, ...]:
    key = value_of(json.loads(text))
    if not isinstance(key, tuple):
        raise UnexpectedKey(f"expected keys of several columns, found {text!r}")
    return key
