"""Random numbers by purpose: equal purposes give equal draws on any machine, whatever ran before."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*purpose: object) -> np.random.Generator:
    """A generator for `purpose`, e.g.

    ("relabel", seed, epoch): equal purposes give equal draws, on any machine.
    """
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
