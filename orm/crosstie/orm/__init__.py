"""ActiveRecord models whose relations cross databases."""

from crosstie.orm.combination import all_of, any_of, not_, sql
from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.orm.local_transaction import LocalTransaction, open_transactions
from crosstie.orm.model import ActiveRecord
from crosstie.orm.page import Page
from crosstie.orm.placement import ShardMap, Tenants, connected_to
from crosstie.orm.prevention import prevent_writes
from crosstie.orm.query import Query
from crosstie.orm.reference import Reference, references
from crosstie.orm.registry import metadata
from crosstie.orm.transaction import transaction

__all__ = [
    "ActiveRecord",
    "ConnectionManager",
    "CrosstieError",
    "Database",
    "LocalTransaction",
    "Page",
    "Query",
    "Reference",
    "ShardMap",
    "Tenants",
    "all_of",
    "any_of",
    "connected_to",
    "metadata",
    "not_",
    "open_transactions",
    "prevent_writes",
    "references",
    "sql",
    "transaction",
]
