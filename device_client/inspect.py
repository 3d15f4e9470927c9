"""A map of what is sent of a picture: every view with its clusters of patches and the bits that each cluster takes.

    views, explained ─ by bits ──┬─ inspect_panel ─ one block of panels, with a legend ─┐
                     └ by index ─┘                  another, if the codec has indices ──┴─ PNG

Beside it are the picture's image files of the same size. Promises a PNG that needs no explanation: bytes in the title,
a legend for the colours, each cluster's expert where the codec has experts; and where it codes indices, the bits of
each stage, and a second block with a colour for each index. Leaves merging and counting bits to the codec, which
encodes here exactly as it does for a question, panels to `inspect_panel`, and the image files to `rival`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from device_client.encoder import EncoderThread, TowerEncoder
from device_client.inspect_panel import (
    INK,
    Regions,
    bits_colours,
    by_bits,
    by_index,
    class_colour,
    draw_panel,
    text_font,
)
from device_client.render import format_bytes
from device_client.report import QUALITY, compare
from device_client.rival import TITLES, Rival, best_within_budget
from tofc.codec.codec import Explanation
from tofc.model.feature_codecs import DEFAULT
from tofc.model.views import View

_BACKGROUND = (250, 250, 247)
_PALE = (110, 112, 118)
_EDGE = 28  # px of margin around everything
_HEADER = 92  # px
_LEGEND = 62  # px, without the gap above a second block
_GAP = 10  # px between views
_CAPTION = 26  # px below a view
_GLOBAL = 624  # px: side of the global view on the map
_CROPS = 960  # px: longer side of all crops together, at most
_RIVAL = 270  # px: longer side of an image codec's picture on the map
_SHOWN = 6  # indices in the legend

#: a view in prompt order, the global one last, and how its packet is spent
Views = Sequence[tuple[View, Explanation]]


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
    packets = encoder.packets([explained.coded for _, explained in views])
    total_bytes = sum(map(len, packets))
    rivals = [best_within_budget(picture.image, codec, total_bytes) for codec in TITLES]
    draw(path.name, views, picture.rows, picture.columns, total_bytes, jpeg, rivals).save(out, "PNG")
    codec = "" if encoder.feature_codec == DEFAULT else f", codec {encoder.feature_codec}"
    stages = f"; {stage_line(views)}" if _has_indices(views) else ""
    count = f"{len(views)} view{'s' * (len(views) > 1)}"
    if len(views) > 1:
        count += f", {len(packets)} packet{'s' * (len(packets) > 1)}"
    return f"{out}: {format_bytes(total_bytes)} in {count}{codec}{stages}"


def draw(
    name: str,
    views: Views,
    rows: int,
    columns: int,
    total_bytes: int,
    jpeg: tuple[int, str] | None = None,
    rivals: Sequence[Rival] = (),
) -> Image.Image:
    """Draw the map of a picture.

    Args:
        views: in prompt order, the global one last.
        total_bytes: of the packets in which they leave.
        jpeg: (bytes, quality and size) of the picture as an ordinary JPEG file.
        rivals: the picture as image files of as many bytes as the packets, at most two.
    """
    bits = np.concatenate([explained.feature_bits for _, explained in views])
    span = (float(bits.min()), max(float(bits.max()), float(bits.min()) + 1.0))
    side = min(_GLOBAL, _CROPS // max(rows, columns)) if rows else 0
    crops_wide = columns * (side + _GAP) - _GAP if rows else 0
    crops_high = rows * (side + _GAP + _CAPTION) - _GAP if rows else 0
    global_left = _EDGE + crops_wide + (3 * _GAP if rows else 0)
    views_right = global_left + _GLOBAL
    block_high = max(crops_high, _GLOBAL + _CAPTION) + _LEGEND
    second = _HEADER + block_high + _CAPTION  # where the block of indices begins
    width = views_right + (3 * _GAP + _RIVAL if rivals else 0) + _EDGE
    indices = _has_indices(views)
    high = (second if indices else _HEADER) + block_high + _EDGE
    sheet = Image.new("RGB", (width, high), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    _title(pen, name, views, total_bytes, jpeg, width)

    def block(top: int, regions: Callable[[Explanation], Regions], caption: Callable[[View, Explanation], str]) -> int:
        """Draw all views, and return where the legend begins."""
        for view, explained in views:
            crop = view.kind == "crop"
            edge = side if crop else _GLOBAL
            corner = (global_left, top)
            if crop:
                corner = (_EDGE + view.column * (side + _GAP), top + view.row * (side + _GAP + _CAPTION))
            sheet.paste(draw_panel(view, regions(explained), edge), corner)
            pen.text((corner[0], corner[1] + edge + 4), caption(view, explained), _PALE, text_font(15))
        return top + block_high - _LEGEND + 26

    _bits_legend(pen, span, block(_HEADER, lambda explained: by_bits(explained, span), _bits_of), views)
    if indices:
        count = _index_counts(views)
        colours = {index: class_colour(rank) for rank, (index, _) in enumerate(count.most_common())}
        top = block(second, lambda explained: by_index(explained, colours), _classes_of)
        _index_legend(pen, count, colours, top)
    for place, rival in enumerate(rivals):
        _beside(sheet, rival, (views_right + 3 * _GAP, _HEADER + place * (_GLOBAL + _GAP) // 2))
    return sheet


def stage_line(views: Views) -> str:
    """Say how many bits an index and its residuals take, as a mean over all features of a codec of indices."""
    first, *rest = np.concatenate([explained.stage_bits for _, explained in views]).mean(axis=0)
    residuals = f", its residuals {' + '.join(f'{bits:.1f}' for bits in rest)}" if rest else ""
    return f"a feature's index takes {first:.1f} bits{residuals}, on average"


def _has_indices(views: Views) -> bool:
    return all(explained.indices is not None for _, explained in views)


def _index_counts(views: Views) -> Counter[int]:
    """Count the features of each index of the first codebook."""
    return Counter(index for _, explained in views for index in _first_indices(explained))


def _first_indices(explained: Explanation) -> list[int]:
    """Return the index of each feature in the first codebook."""
    assert explained.indices is not None
    found: list[int] = explained.indices[:, 0].tolist()
    return found


def _bits_of(view: View, explained: Explanation) -> str:
    bits = f"{explained.feature_bits.sum() + explained.position_bits:.0f} bits"
    return bits if view.kind == "crop" else f"whole picture: {bits}, {len(explained.feature_bits)} features"


def _classes_of(view: View, explained: Explanation) -> str:
    features, different = len(explained.feature_bits), len({*_first_indices(explained)})
    if view.kind == "crop":
        return f"{different} {'index' if different == 1 else 'indices'}"
    return f"whole picture: {different} different indices in {features} features"


def _beside(sheet: Image.Image, rival: Rival, corner: tuple[int, int]) -> None:
    """Draw an image codec's picture, enlarged without smoothing, and its size below it."""
    pen, high = ImageDraw.Draw(sheet), 0
    if rival.image is not None:
        factor = _RIVAL / max(rival.image.size)
        size = max(1, round(rival.image.width * factor)), max(1, round(rival.image.height * factor))
        sheet.paste(rival.image.convert("RGB").resize(size, Image.Resampling.NEAREST), corner)
        high = size[1]
    for line, text in enumerate(str(rival).split(", ", 1)):
        pen.text((corner[0], corner[1] + high + 4 + 17 * line), text, INK if line == 0 else _PALE, text_font(14))


def _title(
    pen: ImageDraw.ImageDraw, name: str, views: Views, total: int, jpeg: tuple[int, str] | None, width: int
) -> None:
    features = sum(len(explained.feature_bits) for _, explained in views)
    cells = sum(len(explained.merged.assignment) for _, explained in views)
    pen.text((_EDGE, 20), _fitting(f"{name}: {total:,} bytes", 28, width - 2 * _EDGE), INK, text_font(28))
    line = f"{features} features of {cells} cells in {len(views)} view{'s' * (len(views) > 1)}"
    if jpeg is not None:
        line += f"; as JPEG {format_bytes(jpeg[0])} ({jpeg[1]})"
    pen.text((_EDGE, 58), _fitting(line, 17, width - 2 * _EDGE), _PALE, text_font(17))


def _bits_legend(pen: ImageDraw.ImageDraw, span: tuple[float, float], top: int, views: Views) -> None:
    long, high = 220, 14
    for step in range(long):
        value = span[0] + (span[1] - span[0]) * step / (long - 1)
        (colour,) = bits_colours(np.array([value]), span)
        pen.line((_EDGE + step, top, _EDGE + step, top + high), tuple(int(one) for one in colour))
    font = text_font(14)
    pen.text((_EDGE, top + high + 4), f"{span[0]:.0f}", _PALE, font)
    pen.text((_EDGE + long, top + high + 4), f"{span[1]:.0f}", _PALE, font, anchor="ra")
    first = "bits of a cluster, which is sent as one feature;"
    second = "in brackets: another piece of a cluster, sent once"
    if any(explained.experts is not None for _, explained in views):
        second += "; e3: coded by expert 3"
    if _has_indices(views):
        first, second = f"{first} {second}", f"second line: its index + its residuals; {stage_line(views)}"
    pen.text((_EDGE + long + 16, top + high // 2), first, _PALE, font, anchor="lm")
    pen.text((_EDGE + long + 16, top + high // 2 + 18), second, _PALE, font, anchor="lm")


def _index_legend(
    pen: ImageDraw.ImageDraw, count: Counter[int], colours: dict[int, tuple[int, int, int]], top: int
) -> None:
    """Draw the most frequent indices with their colours, and say what a colour means."""
    font, left = text_font(14), _EDGE
    for index, features in count.most_common(_SHOWN):
        pen.rectangle((left, top, left + 14, top + 14), colours[index])
        text = f"{index} ({features} x)"
        pen.text((left + 20, top + 7), text, _PALE, font, anchor="lm")
        left += 20 + round(font.getlength(text)) + 16
    more = f"{len(count) - _SHOWN} more" if len(count) > _SHOWN else ""
    pen.text((left, top + 7), more, _PALE, font, anchor="lm")
    means = "equal colours: features with an equal index in the first codebook; numbers: the index"
    pen.text((_EDGE, top + 25), means, _PALE, font, anchor="lm")


def _fitting(text: str, size: int, width: int) -> str:
    """Shorten a text from the left until it is at most `width` px wide."""
    font = text_font(size)
    while font.getlength(text) > width and len(text) > 8:
        text = "…" + text[2:]
    return text
