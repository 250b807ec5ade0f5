"""Words of small trainings, and small pictures to train on."""

import subprocess
import sys
from pathlib import Path

import numpy as np

NET = ("--unet.width", 16, "--unet.multipliers", 1, "--unet.blocks", 1, "--unet.attention", "--precision", "fp32")
TINY = (*NET, "--steps", 8, "--batch", 8, "--checkpoint-every", 4, "--sample-every", 0)


def save_photos(folder: Path, classes=("cat", "dog"), each=12, size=(8, 8)) -> Path:
    """Pictures of noise as `folder`/class/number.png; size: (width, height)."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def in_new_process(code: str, *words) -> subprocess.CompletedProcess:
    """Run python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
