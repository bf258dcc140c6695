"""Draw what a fix changed: `python docs/make_picture.py RECORD SUBJECT PICTURE.png`.

The first row shows test inputs that the fixed model newly gets right, the second those that it
newly gets wrong, each with its label and the other model's prediction.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from modelfix_core.subject import Subject
from PIL import Image, ImageDraw, ImageFont

SHOWN, SIDE, MARGIN, TEXT = 8, 112, 12, 46
INK, GREEN, RED, PAPER = "#222222", "#1a7f37", "#b42318", "#ffffff"


def main(record: Path, subject: Path, picture: Path) -> None:
    """Write the picture of one record."""
    prepared = Subject.load(subject)
    test = prepared.dataset(("test",))["test"]
    table = pq.read_table(record / "predictions.parquet").to_pydict()
    position = {sample: place for place, sample in enumerate(test.ids.tolist())}
    places = np.array([position[sample] for sample in table["id"]])
    before = np.array(table["logits_before"]).argmax(axis=1)
    after = np.array(table["logits_after"]).argmax(axis=1)
    label = np.array(table["label"])
    fixed = np.flatnonzero((before != label) & (after == label))
    broken = np.flatnonzero((before == label) & (after != label))
    rows = [(f"newly right: {len(fixed)} inputs", fixed, GREEN)]
    rows += [(f"newly wrong: {len(broken)} inputs", broken, RED)]
    width = MARGIN + SHOWN * (SIDE + MARGIN)
    height = len(rows) * (28 + SIDE + TEXT) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top = MARGIN
    for title, chosen, colour in rows:
        draw.text((MARGIN, top), title, fill=colour, font=ImageFont.load_default(16))
        for column, row in enumerate(chosen[:SHOWN]):
            left = MARGIN + column * (SIDE + MARGIN)
            pixels = np.asarray(test.x[places[row]]).squeeze(0)
            image = Image.fromarray(255 - pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(image.convert("RGB"), (left, top + 24))
            names = [prepared.card.classes[k] for k in (label[row], before[row], after[row])]
            change = f"was {names[1]}" if before[row] != label[row] else f"now {names[2]}"
            draw.text((left, top + 26 + SIDE), names[0], fill=INK, font=font)
            draw.text((left, top + 42 + SIDE), change, fill=colour, font=font)
        top += 28 + SIDE + TEXT
    sheet.save(picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
