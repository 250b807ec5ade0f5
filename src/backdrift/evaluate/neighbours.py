"""How well a space of features knows what pictures show: how often the nearest others have the same label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backdrift.errors import UserError
from backdrift.evaluate.agreement import Share


def neighbour_agreement(
    queries: Tensor, query_labels: Tensor, points: Tensor, labels: Tensor, *, k: int = 1, cosine: bool = False
) -> Share:
    """For how many of `queries` (n, F) the majority of the `k` nearest of `points` (N, F) has their label.

    labels: int64 from 0. cosine: nearest in angle, not in distance. Equal votes go to the nearest.

    Raises `UserError` for a k that there are not enough points for.
    """
    if not 1 <= k <= len(points):
        raise UserError(f"There are {len(points)} pictures to find neighbours among, so k is from 1 to that, not {k}.")
    queries, points = queries.flatten(1).float(), points.flatten(1).float()
    if cosine:
        queries, points = F.normalize(queries, dim=1), F.normalize(points, dim=1)
    half = points.square().sum(1) / 2
    classes = int(labels.max()) + 1
    # the nearer counts for more, by less than a vote in all
    weight = 1 + 0.5 ** torch.arange(1, k + 1, dtype=torch.float64)
    right = 0
    for part, wanted in zip(queries.split(1024), query_labels.split(1024), strict=True):
        nearest = labels[(part @ points.T - half).topk(k, dim=1).indices]
        votes = (F.one_hot(nearest, classes) * weight[:, None]).sum(1)
        right += int((votes.argmax(1) == wanted).sum())
    return Share(right, len(queries))
