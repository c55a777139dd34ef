"""The models of the forum as a module that a command can import."""

from __future__ import annotations

from copies.forum import define

MODELS = define()
