"""Representations: what a picture shows, as a short vector, learned without labels.

`augment` makes two views of a picture, `contrast` trains an encoder to recognise that they belong together.
"""

from backdrift.represent.augment import Blur, Grain, Jitter, Mirror, Move, views_for
from backdrift.represent.contrast import Contrast, nt_xent
from backdrift.represent.encoder import Encoder, EncoderChoice

__all__ = [
    "Blur",
    "Contrast",
    "Encoder",
    "EncoderChoice",
    "Grain",
    "Jitter",
    "Mirror",
    "Move",
    "nt_xent",
    "views_for",
]
