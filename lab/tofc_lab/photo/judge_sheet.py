"""A picture of the questions that a model missed: each photograph with what was asked, answered and wanted.

Promises that only photographs that may be shipped are drawn, unless all are asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tofc_lab.photo.judge import Judged
from tofc_lab.photo.judge_pictures import open_photograph
from tofc_lab.photo.judge_questions import load

COLUMNS, WIDTH, HEIGHT, MARGIN = 4, 300, 200, 8  # px, of a photograph's place
LINE, TEXT = 17, 13  # px
INK, WRONG, PAPER = "black", "firebrick", "white"


def draw(judged: Sequence[Judged], out: Path, folder: Path | None, *, every: bool = False) -> int:
    """Write the misses as a PNG file and return how many are on it.

    With `every`, photographs that may not be passed on are drawn too: then the file may not be published either.
    """
    photographs = load()[0]
    misses: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if not one.right and (every or photographs[one.question.picture].shipped):
            misses[one.question.picture].append(one)
    names = list(misses)
    rows = [names[at : at + COLUMNS] for at in range(0, len(names), COLUMNS)]
    heights = [HEIGHT + MARGIN + 2 * LINE * max(len(misses[name]) for name in row) + 2 * MARGIN for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + MARGIN) + MARGIN, max(sum(heights), LINE) + MARGIN), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    top = MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, name in enumerate(row):
            left = MARGIN + column * (WIDTH + MARGIN)
            image = open_photograph(photographs[name], folder)
            assert image is not None  # it was asked about
            image.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            sheet.paste(image, (left, top))
            at = top + HEIGHT + MARGIN
            for one in misses[name]:
                wanted = " / ".join(one.question.answers)
                for text, ink in ((one.question.ask, INK), (f"{one.answer}  (wanted: {wanted})", WRONG)):
                    pen.text((left, at), _fitting(text, font), fill=ink, font=font)
                    at += LINE
        top += height
    sheet.save(out)
    return sum(map(len, misses.values()))


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return a text cut to one line of a photograph's width."""
    line = " ".join(text.split())
    while font.getlength(line) > WIDTH:
        line = line[:-4] + "..."
    return line
