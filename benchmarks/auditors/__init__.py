"""Ways of finding orphans between two databases, for benchmarks/audit.py."""
