"""crosstie's own tables by numbered versions, up and down: for `crosstie init`, and for your Alembic revisions."""

from crosstie.outbox.migrations.change import (
    current_version,
    downgrade,
    downgrade_to,
    newest_version,
    upgrade,
    upgrade_to,
)

__all__ = ["current_version", "downgrade", "downgrade_to", "newest_version", "upgrade", "upgrade_to"]
