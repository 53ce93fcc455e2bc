"""The images of a generator on one sheet: a row a method, dense first.

Imports little at the top: whether a sheet can be written is known before the long work begins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from smyrf.compare.problem import Problem

if TYPE_CHECKING:
    from smyrf.compare.comparison import Comparison

GAP = 4  # pixels between images
LABEL = 22  # pixels above a row, for its name
LETTERS = 16


def check_sheet(path: Path) -> None:
    """Raises Problem if there is no such format, or nothing to write it with."""
    if path.suffix.lower() != ".png":
        raise Problem(f"--sheet {path}: expected a name that ends in .png")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise Problem(
            f"{error.name} is not installed, and --sheet needs it; type: pip install pillow"
        ) from error


def draw_sheet(comparison: Comparison, file: BinaryIO) -> None:
    """Writes the sheet as PNG. The model's own attention is exact, too, and left out."""
    from PIL import Image, ImageDraw, ImageFont

    rows = [(row.label, row.pictures) for row in comparison.rows[1:] if row.pictures is not None]
    count, height, width, _ = rows[0][1].shape
    size = (GAP + count * (width + GAP), len(rows) * (LABEL + height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LETTERS)
    for line, (label, pictures) in enumerate(rows):
        top = line * (LABEL + height + GAP)
        draw.text((GAP, top), label, "black", font)
        for column, picture in enumerate(pictures):
            place = (GAP + column * (width + GAP), top + LABEL)
            sheet.paste(Image.fromarray(picture), place)
    sheet.save(file, "PNG")
