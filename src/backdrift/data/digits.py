"""The embedded default: scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 grey values, ten labels.

The file holds v = 0..16 with 0 the background. Here v becomes the byte round(255 v / 16), so the background is -1 and
full ink is 1; round(16 u / 255) gives v back exactly, because neighbouring values lie at least 15 bytes apart.
"""

from __future__ import annotations

import numpy as np
import torch

from backdrift.data.pictures import Pictures


def digits(*, validation: float = 0.1) -> Pictures:
    """1,797 pictures of shape (1, 8, 8), labels 0..9; `validation` is the fraction that `split` holds out."""
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    source = {"kind": "digits", "validation": validation}
    found = Pictures(
        pixels=torch.from_numpy(pixels),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple("0123456789"),
        names=[f"digit {i}" for i in range(len(pixels))],
        source=source,
        validation=validation,
    )
    source["fingerprint"] = found.fingerprint
    return found
