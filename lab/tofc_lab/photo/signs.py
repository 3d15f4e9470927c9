"""Signs: words on a plate or straight on a photograph, turned and shaded, with the place of every character.

Leaves where signs occur to `pictures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tofc_lab.photo import assets, colours, names
from tofc_lab.world.assets import font

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A sign's text, in capitals, and the places (x, y) in px of its characters without spaces, in reading order."""

    text: str
    places: tuple[tuple[float, float], ...]


def draw_text(rng: np.random.Generator, folder: Path) -> str:
    """Return a common word, two of them, a rarer one, a number, or letters without sense; one or two lines."""
    kind = rng.random()
    common = names.load().on_signs
    pick = common[int(rng.integers(len(common)))]
    if kind < 0.4:
        return pick
    if kind < 0.5:
        return f"{pick} {common[int(rng.integers(len(common)))]}"
    if kind < 0.72:
        rare = assets.words(folder)
        return rare[int(rng.integers(len(rare)))]
    if kind < 0.85:
        return str(int(rng.integers(10 ** int(rng.integers(1, 5)))))
    return "".join(CHARACTERS[int(i)] for i in rng.integers(len(CHARACTERS), size=int(rng.integers(2, 7))))


@cache
def _font(folder: Path, name: str, size: int) -> ImageFont.FreeTypeFont:
    return font(folder, name, size)


def add_sign(rng: np.random.Generator, folder: Path, image: Image.Image) -> Sign:
    """Paint a random sign onto a picture."""
    text = draw_text(rng, folder)
    words = text.split(" ")
    lines = words if len(words) > 1 and (len(text) > 10 or rng.random() < 0.5) else [text]
    shown = [line.title() if rng.random() < 0.25 else line for line in lines]
    side = image.width
    longest = max(map(len, shown))
    wide = float(rng.uniform(max(0.3, min(0.1 * longest, 0.8)), 0.95)) * side
    name = assets.FONTS[int(rng.integers(len(assets.FONTS)))]
    trial = _font(folder, name, 40)
    size = round(min(40 * wide / max(trial.getlength(line) for line in shown), 0.5 * side / len(shown)))
    used = _font(folder, name, max(8, size - size % 4))  # few sizes, so that the cache stays small
    height = 1.2 * used.size
    text_wide = max(used.getlength(line) for line in shown)
    margin = float(rng.uniform(0.15, 0.5)) * used.size
    plate_size = round(text_wide + 2 * margin), round(height * len(shown) + margin)
    ink, ground = _two_colours(rng)
    plate = Image.new("RGBA", plate_size)
    pen = ImageDraw.Draw(plate)
    if rng.random() < 0.8:  # else straight on the photograph
        edge = [0, 0, plate_size[0] - 1, plate_size[1] - 1]
        outline = ink if rng.random() < 0.4 else None
        radius = float(rng.uniform(0, 0.3)) * used.size
        pen.rounded_rectangle(edge, radius, fill=(*ground, 255), outline=outline, width=max(1, int(used.size) // 12))
    centres = []
    for row, line in enumerate(shown):
        left = (plate_size[0] - used.getlength(line)) / 2
        middle = margin / 2 + (row + 0.5) * height
        pen.text((left, middle), line, fill=(*ink, 255), font=used, anchor="lm")
        for at, character in enumerate(line):
            if character != " ":
                centres.append((left + (used.getlength(line[:at]) + used.getlength(line[: at + 1])) / 2, middle))
    angle = float(rng.normal(0, 5))
    turned = plate.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    scale = min(1.0, 0.98 * side / turned.width, 0.98 * side / turned.height)
    if scale < 1:
        new = max(1, round(turned.width * scale)), max(1, round(turned.height * scale))
        turned = turned.resize(new, Image.Resampling.LANCZOS)
    if rng.random() < 0.3:
        turned = turned.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    at_x, at_y = int(rng.uniform(0, side - turned.width)), int(rng.uniform(0, side - turned.height))
    image.paste(turned, (at_x, at_y), turned)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    middle_x, middle_y = at_x + turned.width / 2, at_y + turned.height / 2
    places = []
    for x, y in centres:
        dx, dy = x - plate_size[0] / 2, y - plate_size[1] / 2
        places.append(
            (
                float(middle_x + scale * (cosine * dx + sine * dy)),
                float(middle_y + scale * (cosine * dy - sine * dx)),
            )
        )
    return Sign(text=" ".join(lines), places=tuple(places))


def _two_colours(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the colours of a sign's text and its plate, of clearly different lightness."""
    for _ in range(50):
        pair = [colours.draw(rng, colours.COLOURS[int(i)]) for i in rng.integers(len(colours.COLOURS), size=2)]
        light = [0.3 * red + 0.59 * green + 0.11 * blue for red, green, blue in pair]
        if abs(light[0] - light[1]) > 90:
            return pair[0], pair[1]
    return (255, 255, 255), (0, 0, 0)
