"""Celery workers that finish sagas, deliver events and run audits, and the command line."""

from crosstie.workers.application import app, install

__all__ = ["app", "install"]
