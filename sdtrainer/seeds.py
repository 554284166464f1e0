"""Seeds that are functions of what they are for, the same on every machine and in every process."""

from __future__ import annotations

import hashlib


def seed_of(*facts: object) -> int:
    """Return a seed in [0, 2**63) from any facts with a stable repr."""
    return int.from_bytes(hashlib.blake2b(repr(facts).encode(), digest_size=8).digest(), "big") >> 1
