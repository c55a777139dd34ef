"""ActiveRecord models whose relations cross databases."""

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.orm.model import ActiveRecord
from crosstie.orm.placement import ShardMap, Tenants, connected_to
from crosstie.orm.query import Query
from crosstie.orm.reference import Reference, references
from crosstie.orm.registry import metadata
from crosstie.orm.transaction import LocalTransaction, open_transactions, transaction

__all__ = [
    "ActiveRecord",
    "ConnectionManager",
    "CrosstieError",
    "Database",
    "LocalTransaction",
    "Query",
    "Reference",
    "ShardMap",
    "Tenants",
    "connected_to",
    "metadata",
    "open_transactions",
    "references",
    "transaction",
]
