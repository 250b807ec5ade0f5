"""What is known of each picture by itself: a hash of its pixels, and the sums that give mean, spread and size.

Everything that a whole set is asked for (its split, fingerprint, standard deviation, radius) follows from these few
numbers per picture, so that a set is read through once, and a part of it not at all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

_CHUNK = 1024  # pictures handled at once where a whole set would need large temporaries


@dataclass(frozen=True, eq=False)
class Census:
    """digests: uint64 (N,), a hash of each picture's bytes. sums: int64 (N, 2), of 2 u - 255 and of its square."""

    digests: np.ndarray
    sums: np.ndarray

    @classmethod
    def of(cls, pixels) -> Census:
        """Of uint8 pixels (N, C, H, W): a tensor, an array or `Rows`."""
        digests, sums = [], []
        for low in range(0, len(pixels), _CHUNK):
            rows = np.ascontiguousarray(pixels[low : low + _CHUNK]).reshape(-1, int(np.prod(pixels.shape[1:])))
            digests += [hashlib.blake2b(row, digest_size=8).digest() for row in rows]
            values = rows.astype(np.int32) * 2 - 255
            sums.append(np.stack([values.sum(1, dtype=np.int64), (values * values).sum(1, dtype=np.int64)], 1))
        found = np.concatenate(sums) if sums else np.zeros((0, 2), dtype=np.int64)
        return cls(np.frombuffer(b"".join(digests), dtype="<u8"), found)

    def take(self, positions: np.ndarray) -> Census:
        """That of the pictures at these positions."""
        return Census(self.digests[positions], self.sums[positions])
