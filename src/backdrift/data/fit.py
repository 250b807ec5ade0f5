"""How a picture of another shape is brought to the wanted one: three choices, each losing something else.

`Crop` loses the edges, `Pad` adds a border, `Stretch` changes the proportions. All filter with Lanczos, which is also
what a picture of the right proportions gets.
"""

from __future__ import annotations

from dataclasses import dataclass

from backdrift.config import kind


@kind("fit.Crop")
@dataclass(frozen=True)
class Crop:
    """Scale the shorter side to fit, and cut what sticks out at both ends of the longer one."""

    def apply(self, image, height: int, width: int):
        """A PIL picture of any size to one of (height, width)."""
        scale = max(width / image.width, height / image.height)
        left = (image.width - width / scale) / 2
        top = (image.height - height / scale) / 2
        return _resize(image, height, width, box=(left, top, image.width - left, image.height - top))


@kind("fit.Pad")
@dataclass(frozen=True)
class Pad:
    """Scale the longer side to fit, and fill the rest with `colour` (red, green, blue; 0 to 255)."""

    colour: tuple[int, int, int] = (255, 255, 255)

    def apply(self, image, height: int, width: int):
        """A PIL picture of any size to one of (height, width)."""
        from PIL import Image

        scale = min(width / image.width, height / image.height)
        inner_width = max(1, round(image.width * scale))
        inner_height = max(1, round(image.height * scale))
        canvas = Image.new("RGB", (width, height), tuple(self.colour))
        inner = _resize(image, inner_height, inner_width)
        canvas.paste(inner, ((width - inner_width) // 2, (height - inner_height) // 2))
        return canvas


@kind("fit.Stretch")
@dataclass(frozen=True)
class Stretch:
    """Scale both sides to fit, each by its own factor."""

    def apply(self, image, height: int, width: int):
        """A PIL picture of any size to one of (height, width)."""
        return _resize(image, height, width)


def _resize(image, height: int, width: int, box=None):
    from PIL import Image

    if box is None and image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)
