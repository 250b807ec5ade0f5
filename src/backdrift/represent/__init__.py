"""Representations: what a picture shows, as a short vector, learned without labels.

`augment` makes two views of a picture, `contrast` trains an encoder to recognise that they belong together. `informed`
is a denoiser that is told a representation, `vectors` are representations to train a prior on, and `stages` samples one
after the other. `directions` are what varies.
"""

from backdrift.represent.augment import Blur, Grain, Jitter, Mirror, Move, views_for
from backdrift.represent.contrast import Contrast, nt_xent
from backdrift.represent.directions import (
    Directions,
    arc,
    effects,
    open_directions,
    path_length,
    principal,
    squared_in,
    walk,
)
from backdrift.represent.encoder import Encoder, EncoderChoice, unit
from backdrift.represent.informed import InformedChoice, Likeness, informed, representation_of
from backdrift.represent.stages import draw, representations
from backdrift.represent.vectors import MLPChoice, Vectors

__all__ = [
    "Blur",
    "Contrast",
    "Directions",
    "Encoder",
    "EncoderChoice",
    "Grain",
    "InformedChoice",
    "Jitter",
    "Likeness",
    "MLPChoice",
    "Mirror",
    "Move",
    "Vectors",
    "arc",
    "draw",
    "effects",
    "informed",
    "nt_xent",
    "open_directions",
    "path_length",
    "principal",
    "representation_of",
    "representations",
    "squared_in",
    "unit",
    "views_for",
    "walk",
]
