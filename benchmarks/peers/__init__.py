"""One adapter for each ORM that benchmarks/orm.py measures."""
