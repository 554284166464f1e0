"""The starter model: a tiny text-to-image pipeline that ships with the app, and everything that makes it."""

from __future__ import annotations

from sdtrainer.starter.cli import main

__all__ = ["main"]
