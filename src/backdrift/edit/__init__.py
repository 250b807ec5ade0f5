"""Editing: new versions of a picture, and pictures of which a part is known."""

from backdrift.edit.control import conditions, fill, pictures_of
from backdrift.edit.partial import Below, between_conditions, blend, recondition, sdedit, time_of, vary
from backdrift.edit.replace import Masked, Replacement, placed, soft_edge
from backdrift.sample.latent import between, invert, round_trip, slerp

__all__ = [
    "Below",
    "Masked",
    "Replacement",
    "between",
    "between_conditions",
    "blend",
    "conditions",
    "fill",
    "invert",
    "pictures_of",
    "placed",
    "recondition",
    "round_trip",
    "sdedit",
    "slerp",
    "soft_edge",
    "time_of",
    "vary",
]
