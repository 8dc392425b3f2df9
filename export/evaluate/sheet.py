"""A contact sheet: pictures with their prompts, wrong ones framed."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from hart_edge.runtime.files import writable

from .run import Evaluation

CAPTION, GAP, MOST = 48, 6, 64
RIGHT, WRONG = (70, 70, 70), (200, 30, 30)


def write_sheet(evaluation: Evaluation, path: Path) -> None:
    """The first 64 pictures as PNG; captions of wrong ones are red."""
    count = min(MOST, len(evaluation.pictures))
    side = evaluation.pictures[0].shape[0]
    columns = math.ceil(math.sqrt(2 * count))  # about twice as wide as high
    rows = -(-count // columns)
    cell_width, cell_height = side + GAP, side + CAPTION + GAP
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for k in range(count):
        x, y = GAP + k % columns * cell_width, GAP + k // columns * cell_height
        right = evaluation.scores[k].all_correct
        sheet.paste(Image.fromarray(evaluation.pictures[k]), (x, y))
        draw.text((x, y + side + 4), textwrap.fill(evaluation.prompts[k].text, side // 6), fill=RIGHT if right else WRONG)
    with writable(path) as temporary:
        sheet.save(temporary, format="PNG")
