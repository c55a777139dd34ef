"""Denormalised columns: declared, filled, propagated, backfilled and compared, over every pair of databases."""
