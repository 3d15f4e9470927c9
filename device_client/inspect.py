"""A map of what is sent of a picture: every view with its clusters of patches and the bits that each cluster takes.

Beside it are the picture's image files of the same size. Promises a PNG that needs no explanation: bytes in the title,
a scale for the colours, and each cluster's expert where the codec has experts. Leaves merging and counting bits to the
codec, which encodes here exactly as it does for a question, and the image files to `rival`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from device_client.encoder import EncoderThread, TowerEncoder
from device_client.render import format_bytes
from device_client.report import QUALITY, compare
from device_client.rival import TITLES, Rival, best_within_budget
from tofc.codec.codec import Explanation
from tofc.model.feature_codecs import DEFAULT
from tofc.model.views import MEAN, STD, View

_BACKGROUND = (250, 250, 247)
_INK = (32, 33, 36)
_PALE = (110, 112, 118)
_EDGE = 28  # px of margin around everything
_GLOBAL = 624  # px: side of the global view on the map
_CROPS = 960  # px: longer side of all crops together, at most
_RIVAL = 270  # px: longer side of an image codec's picture on the map
_MIN_CELL = 22  # px: numbers in smaller cells could not be read
# Few bits → many bits: light to dark, also in greyscale and for colour-blind people (cividis).
_SCALE = np.array(
    [(255, 234, 70), (203, 186, 105), (148, 142, 119), (102, 105, 112), (48, 77, 107), (0, 34, 78)], np.float64
)


def write_map(path: Path, out: Path, encoder: TowerEncoder) -> str:
    """Draw the map of a picture into a PNG file; return a line for the user: the file, bytes and views."""
    picture = EncoderThread(encoder).open(path)
    assert picture.image is not None, "pixels are kept until the last view is encoded"
    encoder.load()
    views = list(encoder.explain(picture.image))
    comparison = compare([picture], encoder.rule)
    jpeg = None
    if comparison is not None:  # the drawing font has no multiplication sign
        jpeg = comparison.jpeg_bytes, f"quality {QUALITY}, {comparison.width} x {comparison.height}"
    total_bytes = sum(len(explained.packet) for _, explained in views)
    rivals = [best_within_budget(picture.image, codec, total_bytes) for codec in TITLES]
    draw(path.name, views, picture.rows, picture.columns, jpeg, rivals).save(out, "PNG")
    codec = "" if encoder.feature_codec == DEFAULT else f", codec {encoder.feature_codec}"
    return f"{out}: {format_bytes(total_bytes)} in {len(views)} view{'s' * (len(views) > 1)}{codec}"


def draw(
    name: str,
    views: Sequence[tuple[View, Explanation]],
    rows: int,
    columns: int,
    jpeg: tuple[int, str] | None = None,
    rivals: Sequence[Rival] = (),
) -> Image.Image:
    """Draw the map of a picture.

    Args:
        views: in prompt order, the global one last.
        jpeg: (bytes, quality and size) of the picture as an ordinary JPEG file.
        rivals: the picture as image files of as many bytes as the packets, at most two.
    """
    bits = np.concatenate([explained.feature_bits for _, explained in views])
    span = (float(bits.min()), max(float(bits.max()), float(bits.min()) + 1.0))
    side = min(_GLOBAL, _CROPS // max(rows, columns)) if rows else 0
    gap, caption = 10, 26
    crops_wide = columns * (side + gap) - gap if rows else 0
    crops_high = rows * (side + gap + caption) - gap if rows else 0
    between = 3 * gap if rows else 0
    header, footer = 92, 62
    views_wide = crops_wide + between + _GLOBAL
    width = 2 * _EDGE + views_wide + (3 * gap + _RIVAL if rivals else 0)
    height = header + max(crops_high, _GLOBAL + caption) + footer + _EDGE
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, name, views, jpeg, width)
    for view, explained in views:
        if view.kind == "crop":
            corner = (_EDGE + view.column * (side + gap), header + view.row * (side + gap + caption))
            label = format_bytes(len(explained.packet))
        else:
            corner = (_EDGE + crops_wide + between, header)
            label = f"whole picture: {format_bytes(len(explained.packet))}, {len(explained.feature_bits)} features"
        edge = side if view.kind == "crop" else _GLOBAL
        sheet.paste(_panel(view, explained, edge, span), corner)
        pen.text((corner[0], corner[1] + edge + 4), label, _PALE, _font(15))
    for place, rival in enumerate(rivals):
        _beside(sheet, rival, (_EDGE + views_wide + 3 * gap, header + place * (_GLOBAL + gap) // 2))
    experts = any(explained.experts is not None for _, explained in views)
    _legend(pen, span, height - _EDGE - footer + 26, experts)
    return sheet


def _beside(sheet: Image.Image, rival: Rival, corner: tuple[int, int]) -> None:
    """Draw an image codec's picture, enlarged without smoothing, and its size below it."""
    pen, high = ImageDraw.Draw(sheet), 0
    if rival.image is not None:
        factor = _RIVAL / max(rival.image.size)
        size = max(1, round(rival.image.width * factor)), max(1, round(rival.image.height * factor))
        sheet.paste(rival.image.convert("RGB").resize(size, Image.Resampling.NEAREST), corner)
        high = size[1]
    for line, text in enumerate(str(rival).split(", ", 1)):
        pen.text((corner[0], corner[1] + high + 4 + 17 * line), text, _INK if line == 0 else _PALE, _font(14))


def _title(
    pen: ImageDraw.ImageDraw,
    name: str,
    views: Sequence[tuple[View, Explanation]],
    jpeg: tuple[int, str] | None,
    width: int,
) -> None:
    total = sum(len(explained.packet) for _, explained in views)
    features = sum(len(explained.feature_bits) for _, explained in views)
    cells = sum(len(explained.merged.assignment) for _, explained in views)
    pen.text((_EDGE, 20), _fitting(f"{name}: {total:,} bytes", 28, width - 2 * _EDGE), _INK, _font(28))
    line = f"{features} features of {cells} cells in {len(views)} view{'s' * (len(views) > 1)}"
    if jpeg is not None:
        line += f"; as JPEG {format_bytes(jpeg[0])} ({jpeg[1]})"
    pen.text((_EDGE, 58), _fitting(line, 17, width - 2 * _EDGE), _PALE, _font(17))


def _panel(view: View, explained: Explanation, side: int, span: tuple[float, float]) -> Image.Image:
    """Draw one view, `side` px wide: the picture, tinted by the bits of each cluster, with borders and numbers."""
    picture = _picture(view.pixels).resize((side, side), Image.Resampling.LANCZOS)
    assignment = explained.merged.assignment  # [N]
    grid = round(len(assignment) ** 0.5)
    owner = assignment.reshape(grid, grid)
    tints = _colours(explained.feature_bits, span)[owner]  # [G, G, 3]
    tint = Image.fromarray(tints).resize((side, side), Image.Resampling.NEAREST)
    picture = Image.blend(picture, tint, 0.38)
    pen = ImageDraw.Draw(picture)
    edges = [round(cell * side / grid) for cell in range(grid + 1)]
    for colour, thick in ((_INK, 5), ((255, 255, 255), 2)):
        for row in range(grid):
            for column in range(grid):
                if column + 1 < grid and owner[row, column] != owner[row, column + 1]:
                    pen.line((edges[column + 1], edges[row], edges[column + 1], edges[row + 1]), colour, thick)
                if row + 1 < grid and owner[row, column] != owner[row + 1, column]:
                    pen.line((edges[column], edges[row + 1], edges[column + 1], edges[row + 1]), colour, thick)
    if side / grid >= _MIN_CELL:
        size = min(20, round(0.36 * side / grid) + 2)
        for cluster, cells in _regions(owner):
            cost = f"{explained.feature_bits[cluster]:.0f}"
            if explained.experts is not None:
                cost += f"\ne{explained.experts[cluster]}"
            centre = divmod(int(explained.merged.centres[cluster]), grid)
            # A cluster may have several pieces but is sent once: only the piece with its centre has a plain number.
            at, label, font = (
                (centre, cost, _font(size)) if centre in cells else (cells[0], f"({cost})", _font(size - 4))
            )
            middle = ((at[1] + 0.5) * side / grid, (at[0] + 0.5) * side / grid)
            pen.text(middle, label, (255, 255, 255), font, anchor="mm", stroke_width=2, stroke_fill=_INK)
    return picture


def _regions(owner: NDArray[np.int64]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Find the connected pieces of clusters [G, G]: (cluster, its cells) in raster order."""
    found = []
    left = {(int(row), int(column)) for row, column in np.ndindex(owner.shape)}
    while left:
        first = min(left)
        left.remove(first)
        cells, cluster = [first], int(owner[first])
        for row, column in cells:  # the list grows during the loop
            for near in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if near in left and owner[near] == cluster:
                    left.remove(near)
                    cells.append(near)
        found.append((cluster, sorted(cells)))
    return found


def _legend(pen: ImageDraw.ImageDraw, span: tuple[float, float], top: int, experts: bool) -> None:
    long, high = 220, 14
    for step in range(long):
        value = span[0] + (span[1] - span[0]) * step / (long - 1)
        (colour,) = _colours(np.array([value]), span)
        pen.line((_EDGE + step, top, _EDGE + step, top + high), tuple(int(one) for one in colour))
    font = _font(14)
    pen.text((_EDGE, top + high + 4), f"{span[0]:.0f}", _PALE, font)
    pen.text((_EDGE + long, top + high + 4), f"{span[1]:.0f}", _PALE, font, anchor="ra")
    first = "bits of a cluster, which is sent as one feature;"
    second = "in brackets: another piece of a cluster, sent once"
    if experts:
        second += "; e3: coded by expert 3"
    pen.text((_EDGE + long + 16, top + high // 2), first, _PALE, font, anchor="lm")
    pen.text((_EDGE + long + 16, top + high // 2 + 18), second, _PALE, font, anchor="lm")


def _colours(bits: NDArray[np.float64], span: tuple[float, float]) -> NDArray[np.uint8]:
    """Map bits [n] to colours [n, 3]."""
    at = np.clip((bits - span[0]) / (span[1] - span[0]), 0, 1) * (len(_SCALE) - 1)
    stops = np.arange(len(_SCALE))
    return np.stack([np.interp(at, stops, _SCALE[:, channel]) for channel in range(3)], axis=-1).astype(np.uint8)


def _picture(pixels: NDArray[np.float32]) -> Image.Image:
    """Turn normalised pixels [3, S, S] back into a picture."""
    values = pixels.transpose(1, 2, 0) * np.array(STD, np.float32) + np.array(MEAN, np.float32)
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def _fitting(text: str, size: int, width: int) -> str:
    """Shorten a text from the left until it is at most `width` px wide."""
    font = _font(size)
    while font.getlength(text) > width and len(text) > 8:
        text = "…" + text[2:]
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
