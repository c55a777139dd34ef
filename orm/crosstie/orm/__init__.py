"""ActiveRecord models whose relations cross databases."""

from crosstie.orm.connection import ConnectionManager
from crosstie.orm.database import Database
from crosstie.orm.errors import CrosstieError
from crosstie.orm.transaction import LocalTransaction, open_transactions, transaction

__all__ = ["ConnectionManager", "CrosstieError", "Database", "LocalTransaction", "open_transactions", "transaction"]
