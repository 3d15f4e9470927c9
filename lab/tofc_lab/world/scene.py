"""A scene: which objects are where, perhaps with a sign, and the picture drawn from it.

Promises that the same generator state gives the same scene and picture. Coordinates are pixels of the picture, with the
origin at the top left. Leaves what can be asked about a scene to `tofc_lab.world.questions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tofc_lab.world import assets
from tofc_lab.world.objects import GLYPHS, NAMES

_NOTO_SIZE = 109  # the only size of the bitmap font


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A centre and a size in px."""

    x: float
    y: float
    width: float
    height: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return (
            self.x - self.width / 2,
            self.y - self.height / 2,
            self.x + self.width / 2,
            self.y + self.height / 2,
        )


@dataclass(frozen=True, kw_only=True)
class Thing(_Placed):
    """One object, perhaps mirrored."""

    name: str
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Sign(_Placed):
    """A white board with a black two-digit number."""

    number: int
    font: str


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects in drawing order and at most one sign on a canvas of `width` × `height` px."""

    width: int
    height: int
    things: tuple[Thing, ...]
    sign: Sign | None

    def count(self, name: str) -> int:
        """Return how many objects have that name."""
        return sum(thing.name == name for thing in self.things)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection of two boxes as a share of the smaller one."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = [(right - left) * (bottom - top) for left, top, right, bottom in (a, b)]
    return w * h / min(area)


@cache
def _glyph(folder: Path, name: str) -> Image.Image:
    """Draw the emoji of a name, RGBA, trimmed."""
    canvas = Image.new("RGBA", (160, 160))
    font = assets.font(folder, "NotoColorEmoji.ttf", _NOTO_SIZE)
    ImageDraw.Draw(canvas).text((8, 8), GLYPHS[name], font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def _draw_names(rng: np.random.Generator, n: int) -> list[str]:
    """Return `n` names, often with repeats, so that there is something to count."""
    style = rng.random()
    distinct = n if style < 0.45 else 1 if style < 0.55 else int(rng.integers(1, min(n, 3) + 1))
    kinds = rng.choice(len(NAMES), size=distinct, replace=False)
    extra = rng.choice(kinds, size=n - distinct)
    return [NAMES[i] for i in rng.permutation([*kinds, *extra])]


def draw_scene(
    rng: np.random.Generator,
    folder: Path,
    *,
    width: int = 336,
    height: int = 336,
    things: tuple[int, int] = (1, 6),
    size: tuple[float, float] = (44, 100),
    sign: float = 1 / 3,
    cut: float = 0.0,
) -> Scene:
    """Return a random scene.

    Args:
        rng: the only source of randomness.
        folder: the unpacked assets.
        width, height: canvas in px.
        things: fewest and most objects.
        size: smallest and largest longer side of an object, in px.
        sign: probability of a sign.
        cut: how far an object may reach over the edge, as a share of its size (for crops of larger pictures).
    """
    boxes: list[tuple[float, float, float, float]] = []

    def place(w: float, h: float, max_overlap: float) -> tuple[float, float] | None:
        for _ in range(30):
            x = rng.uniform(w * (0.5 - cut), width - w * (0.5 - cut))
            y = rng.uniform(h * (0.5 - cut), height - h * (0.5 - cut))
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            if all(_overlap(box, other) <= max_overlap for other in boxes):
                boxes.append(box)
                return x, y
        return None

    board = None
    if rng.random() < sign:
        w = rng.uniform(56, 120) * min(1.0, width / 168)
        h = w * rng.uniform(0.55, 0.8)
        if (at := place(w, h, 0.0)) is not None:
            number, typeface = int(rng.integers(10, 100)), assets.SIGN_FONTS[rng.integers(len(assets.SIGN_FONTS))]
            board = Sign(number=number, x=at[0], y=at[1], width=w, height=h, font=typeface)
    placed: list[Thing] = []
    max_overlap = 0.5 if rng.random() < 0.5 else 0.15
    for name in _draw_names(rng, int(rng.integers(things[0], things[1] + 1))):
        glyph = _glyph(folder, name)
        scale = rng.uniform(*size) / max(glyph.size)
        w, h = glyph.width * scale, glyph.height * scale
        # a sign is never covered: questions about it must have an answer
        if board is not None:
            at = next(
                (p for _ in range(8) if (p := place(w, h, max_overlap)) and not _drop_if_over(boxes, board)), None
            )
        else:
            at = place(w, h, max_overlap)
        if at is not None:
            placed.append(Thing(name=name, x=at[0], y=at[1], width=w, height=h, mirrored=rng.random() < 0.3))
    return Scene(width=width, height=height, things=tuple(placed), sign=board)


def _drop_if_over(boxes: list[tuple[float, float, float, float]], sign: Sign) -> bool:
    """Remove the newest box if it covers part of the sign; return whether it did."""
    if _overlap(boxes[-1], sign.box) > 0:
        boxes.pop()
        return True
    return False


def background(rng: np.random.Generator, folder: Path, split: assets.Split, width: int, height: int) -> Image.Image:
    """Return a random crop of a photograph of the split, sometimes flipped or tinted, or a plain colour."""
    if rng.random() < 0.15:
        return Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    photographs = assets.photographs(folder, split)
    photo = photographs[rng.integers(len(photographs))]
    aspect = width / height
    largest = min(photo.width, photo.height * aspect)
    w = largest * rng.uniform(0.25, 1.0)
    h = w / aspect
    left, top = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    picture = photo.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:  # other colours and contrast, because the few photographs would be memorised
        gain, lift = rng.uniform(0.6, 1.3, 3), rng.uniform(-40, 40, 3)
        table = [np.clip(np.arange(256) * g + b, 0, 255).astype(np.uint8) for g, b in zip(gain, lift, strict=True)]
        picture = picture.point(np.concatenate(table).tolist())
    return picture


def generated_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return soft coloured clouds, for pictures that are published: no photograph is needed."""
    octaves = np.zeros((height, width, 3))
    for cells, weight in ((2, 1.0), (5, 0.5), (13, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        octaves += weight * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray(np.clip(octaves / 1.7, 0, 255).astype(np.uint8))


def render(rng: np.random.Generator, folder: Path, split: assets.Split, scene: Scene) -> Image.Image:
    """Return the picture of a scene on a random background of the split, RGB."""
    return draw(rng, folder, scene, background(rng, folder, split, scene.width, scene.height))


def draw(rng: np.random.Generator, folder: Path, scene: Scene, picture: Image.Image) -> Image.Image:
    """Draw a scene onto `picture` (changed in place) and return it."""
    for thing in scene.things:
        glyph = _glyph(folder, thing.name)
        if thing.mirrored:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        glyph = glyph.resize((max(1, round(thing.width)), max(1, round(thing.height))), Image.Resampling.BILINEAR)
        picture.paste(glyph, (round(thing.box[0]), round(thing.box[1])), glyph)
    if scene.sign is not None:
        sign = scene.sign
        pen = ImageDraw.Draw(picture)
        pen.rectangle(sign.box, fill="white", outline=None if rng.random() < 0.5 else "black", width=2)
        font = assets.font(folder, sign.font, round(min(sign.height * 0.8, sign.width * 0.62)))
        pen.text((sign.x, sign.y), str(sign.number), fill="black", font=font, anchor="mm")
    return picture
