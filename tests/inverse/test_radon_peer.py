"""The Radon transform against scikit-image's, where that is installed."""

import math

import numpy as np
import pytest
import torch

from backdrift.inverse import Radon


@pytest.mark.interop
@pytest.mark.parametrize("side", [32, 65])
def test_parallel_beams_agree_with_scikit_image(side):
    transform = pytest.importorskip("skimage.transform")
    place = np.arange(side) - (side - 1) / 2
    across, down = np.meshgrid(place, place)
    picture = np.zeros((side, side))
    for x, y, width, height in ((0.1, 0.05, 0.3, 0.2), (-0.15, 0.1, 0.1, 0.15), (0.05, -0.2, 0.08, 0.08)):
        # smooth bumps, so that what is left is the two interpolations'
        picture += np.exp(-(((across / side - x) / width) ** 2) - ((down / side - y) / height) ** 2)
    picture *= (across**2 + down**2) < (side / 2 - 2) ** 2
    degrees = np.array([0.0, 17.0, 45.0, 90.0, 133.0])
    theirs = transform.radon(picture, degrees, circle=True).T
    ours = Radon(torch.tensor(np.deg2rad(degrees)), (1, side, side), 0.1).forward(torch.tensor(picture)[None, None])
    ours = ours[0, 0].numpy()
    # they rotate about pixel side // 2, which for an even side is half a pixel right of and below the centre
    off = 0.0 if side % 2 else 0.5
    moved = [
        np.interp(place - off + off * (math.cos(a) - math.sin(a)), place, row)
        for a, row in zip(np.deg2rad(degrees), ours, strict=True)
    ]
    assert np.abs(np.array(moved) - theirs).max() < 0.015 * theirs.max()
