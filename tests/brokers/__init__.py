"""Tests of the routes to message brokers, against real ones."""
