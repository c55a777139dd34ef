"""The test bench: real databases, a proxy that loses what passes, processes that are really killed.

Fixtures (tests/conftest.py), each database fresh, empty and dropped after its test:

- `database` (sqlite, postgresql, mariadb) -> `TestDatabase`
- `pair` (six ordered pairs of different kinds, sqlite-sqlite) -> `Pair(first, second)`
- `crash_pair` (sqlite-sqlite, postgresql-mariadb, mariadb-postgresql) -> `Pair`
- `trio` (the three kinds, each first in turn) -> `Trio(first, second, third)`
- `configured`, `configured_crash_pair`, `configured_trio`, `configured_database`: the same, with crosstie configured
  (`default`, `secondary`, `tertiary`) and its tables created
"""
