"""Random numbers by purpose: draws depend on their purpose alone, on any machine."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*purpose: object) -> np.random.Generator:
    """A generator for `purpose`, for example ("relabel", seed, epoch).

    Equal purposes give equal draws, whatever ran before.
    """
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
