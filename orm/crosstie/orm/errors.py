"""Every error that crosstie raises on purpose descends from `CrosstieError`.

An error carries a stable `code` for programs, says whether the same call may succeed later (`retryable`), and
survives pickling, because Celery's prefork pool sends exceptions between processes.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AmbiguousModel",
    "CacheUnavailable",
    "CommitInDoubt",
    "ConfigurationError",
    "CrossDatabaseQuery",
    "CrossDatabaseWriteWarning",
    "CrosstieError",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlockDetected",
    "DeleteRestricted",
    "DuplicateKey",
    "FieldNotLoaded",
    "IntegrityViolation",
    "InvalidQuery",
    "LazyLoadWarning",
    "LockTimeout",
    "ModelDefinitionError",
    "MultipleRecords",
    "NoSuchTable",
    "NoTenantChosen",
    "PoolExhausted",
    "ReadOnlyConnection",
    "RecordInvalid",
    "RecordNotFound",
    "ReferenceTypeMismatch",
    "StaleRecord",
    "StatementTimeout",
    "StrictLoadingViolation",
    "TransactionPoisoned",
    "UnknownConnection",
    "WritesPrevented",
    "WrongTenant",
]


class CrosstieError(Exception):
    """The root of the hierarchy; `str()` says what was expected, what was found and what to do."""

    code: ClassVar[str] = "crosstie"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", /) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigurationError(CrosstieError):
    """The configuration cannot be used as it stands."""

    code = "config.invalid"


class UnknownConnection(ConfigurationError):
    """A connection name was used that is not configured."""

    code = "config.unknown-connection"


class ModelDefinitionError(CrosstieError):
    """A model class is not declared in a way that can be mapped to a table."""

    code = "model.definition"


class AmbiguousModel(ModelDefinitionError):
    """Two models have the name that a relation refers to."""

    code = "model.ambiguous"


class ReadOnlyConnection(CrosstieError):
    """A write was meant for a connection that is configured read_only."""

    code = "connection.read-only"


class WritesPrevented(ReadOnlyConnection):
    """A write was meant inside `prevent_writes()`."""

    code = "connection.writes-prevented"


class NoTenantChosen(CrosstieError):
    """A model is in a database for each tenant or shard, and none is chosen here."""

    code = "connection.no-tenant"


class WrongTenant(CrosstieError):
    """A record of one tenant's or shard's database was used while another is chosen."""

    code = "connection.wrong-tenant"


class RecordInvalid(CrosstieError):
    """A record cannot be saved with the values that it has."""

    code = "record.invalid"


class DeleteRestricted(CrosstieError):
    """Rows of another model refer to the row that was to be deleted, and their reference restricts it."""

    code = "record.delete-restricted"


class RecordNotFound(CrosstieError):
    """No row matches."""

    code = "record.not-found"


class MultipleRecords(CrosstieError):
    """More than one row matches where exactly one was expected."""

    code = "record.multiple"


class StaleRecord(CrosstieError):
    """The row was changed or deleted by somebody else since it was loaded."""

    code = "record.stale"
    retryable = True


class InvalidQuery(CrosstieError):
    """The query names something that the model does not have, or combines what cannot be combined."""

    code = "query.invalid"


class CrossDatabaseQuery(InvalidQuery):
    """One statement would need tables of two databases."""

    code = "query.cross-database"


class ReferenceTypeMismatch(InvalidQuery):
    """A reference's key and the key it refers to have types that do not compare."""

    code = "query.reference-type-mismatch"


class FieldNotLoaded(CrosstieError):
    """A field of a record was used that `select()` has left out."""

    code = "record.field-not-loaded"


class StrictLoadingViolation(CrosstieError):
    """A relation was loaded lazily where strict loading forbids it."""

    code = "relation.strict-loading"


class CacheUnavailable(CrosstieError):
    """The cache does not answer, or not in a way that can be used; where parents are looked up, nobody is told."""

    code = "cache.unavailable"
    retryable = True


class DatabaseError(CrosstieError):
    """A database refused a statement."""

    code = "database.error"


class DatabaseUnavailable(DatabaseError):
    """The database could not be reached, or the connection to it was lost."""

    code = "database.unavailable"
    retryable = True


class PoolExhausted(DatabaseUnavailable):
    """Every pooled connection is in use."""

    code = "database.pool-exhausted"


class DeadlockDetected(DatabaseError):
    """The database ended the transaction to resolve a deadlock or a serialization conflict."""

    code = "database.deadlock"
    retryable = True


class LockTimeout(DatabaseError):
    """A lock that another transaction holds was not released in time."""

    code = "database.lock-timeout"
    retryable = True


class StatementTimeout(LockTimeout):
    """A statement ran, or waited for a lock, for longer than it may, or was cancelled."""

    code = "database.statement-timeout"


class IntegrityViolation(DatabaseError):
    """A constraint of the database refused the write."""

    code = "database.integrity"


class DuplicateKey(IntegrityViolation):
    """A row with this key exists already."""

    code = "database.duplicate-key"


class NoSuchTable(DatabaseError):
    """The table (or a column of it) does not exist in the database."""

    code = "database.no-such-table"


class TransactionPoisoned(DatabaseError):
    """A statement failed inside the transaction, so the database may have dropped part of it; it can only roll back."""

    code = "transaction.poisoned"


class CommitInDoubt(DatabaseError):
    """The connection was lost during COMMIT: the transaction may or may not be durable."""

    code = "transaction.commit-in-doubt"


class CrossDatabaseWriteWarning(UserWarning):
    """A write went to a second database inside a plain transaction of another; use a saga."""


class LazyLoadWarning(UserWarning):
    """A relation was loaded lazily against strict loading, or for many records of one query, one by one."""
