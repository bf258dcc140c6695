"""Pictures of a fix: where weights were blamed and changed, and sheets of images."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from modelfix_core.approach import Evidence
from modelfix_core.files import atomic_path
from modelfix_core.model import Layer
from PIL import Image, ImageDraw, ImageFont

from modelfix.explanation import Explanation, positions, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN, SIDE, MARGIN, LINE = 8, 112, 12, 16
INK, GREEN, RED, PAPER = "#222222", "#1a7f37", "#b42318", "#ffffff"
MOST_GROUPS = 20
CLASSED = ("label", "predicted")  # columns of evidence that hold classes
CELLS = 96  # rows and columns of a drawn layer at most
MOST_MARKS = 500


def draw_all(explanation: Explanation, folder: Path) -> list[Path]:
    """Draw everything that a record has into `folder` and return the paths."""
    blame, inputs = folder / "blame.png", folder / "inputs.png"
    drawn = [
        path
        for path, draw in ((blame, draw_blame), (inputs, draw_inputs))
        if draw(explanation, path)
    ]
    for evidence in explanation.evidence:
        path = folder / f"{evidence.name}.png"
        if draw_evidence(explanation, evidence, path):
            drawn.append(path)
    return drawn


# -- sheets of images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """An image [C, H, W] (uint8, or float in [0, 1]) with lines of text below it."""

    image: np.ndarray
    lines: Sequence[str]


@dataclass(frozen=True)
class Group:
    """A titled row of tiles."""

    title: str
    tiles: Sequence[Tile]
    colour: str = INK


def contact_sheet(groups: Sequence[Group], path: Path) -> None:
    """Write a PNG with a row of images per group, at most `SHOWN` of each."""
    texts = [max((len(t.lines) for t in group.tiles), default=0) for group in groups]
    heights = [2 * LINE + SIDE + count * LINE + MARGIN for count in texts]
    width = MARGIN + SHOWN * (SIDE + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    top = MARGIN
    for group, height in zip(groups, heights, strict=True):
        draw.text((MARGIN, top), group.title, fill=group.colour, font=ImageFont.load_default(15))
        for column, tile in enumerate(group.tiles[:SHOWN]):
            left = MARGIN + column * (SIDE + MARGIN)
            sheet.paste(_thumbnail(tile.image), (left, top + 24))
            for number, line in enumerate(tile.lines):
                place = (left, top + 26 + SIDE + number * LINE)
                draw.text(place, line, fill=INK if number == 0 else group.colour, font=font)
        top += height
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _thumbnail(image: np.ndarray) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels[:3].transpose(1, 2, 0))
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def draw_inputs(explanation: Explanation, path: Path) -> bool:
    """Draw test inputs that are newly right and newly wrong; False if nothing was evaluated."""
    from modelfix_metrics.predictions import FILE, Predictions

    if not (explanation.folder / FILE).exists():
        return False
    stored = Predictions.load(explanation.folder / FILE)
    test = explanation.subject.dataset(("test",))["test"]
    classes = explanation.subject.card.classes
    places = positions(test.ids, stored.ids)
    before, after = stored.before.argmax(axis=1), stored.after.argmax(axis=1)

    def group(title: str, chosen: np.ndarray, word: str, said: np.ndarray, colour: str) -> Group:
        rows = np.flatnonzero(chosen)
        tiles = [
            Tile(test.x[place], (classes[stored.y[row]], f"{word} {classes[said[row]]}"))
            for row in rows[:SHOWN]
            if (place := places[row]) is not None
        ]
        return Group(f"{title}: {len(rows)} of {len(stored)} test inputs", tiles, colour)

    right, broken = stored.right_before, stored.right_after
    contact_sheet(
        [
            group("newly right", ~right & broken, "was", before, GREEN),
            group("newly wrong", right & ~broken, "now", after, RED),
        ],
        path,
    )
    return True


def draw_evidence(explanation: Explanation, evidence: Evidence, path: Path) -> bool:
    """Draw the images of an evidence table, a row per cluster; False if it names no samples."""
    if "sample" not in evidence.columns or not len(evidence.columns["sample"]):
        return False
    dataset = explanation.subject.dataset()
    grouped: dict[Any, list[Tile]] = defaultdict(list)
    sizes: dict[Any, int] = defaultdict(int)
    where = {
        int(sample): (split, place)
        for split in (dataset.splits[name] for name in dataset.splits if name != "test")
        for place, sample in enumerate(split.ids)
    }
    for row in rows_of(evidence):
        cluster = row.pop("cluster", None)
        sizes[cluster] += 1
        found = where.get(int(row.pop("sample")))
        if found is None or len(grouped[cluster]) >= SHOWN:
            continue
        split, place = found
        lines = [_caption(key, value, dataset.classes) for key, value in row.items()]
        grouped[cluster].append(Tile(split.x[place], lines[:4]))
    largest = sorted(sizes, key=lambda cluster: -sizes[cluster])[:MOST_GROUPS]
    groups = [Group(_title(evidence, c, sizes[c]), grouped[c]) for c in largest]
    contact_sheet(groups, path)
    return True


def _title(evidence: Evidence, cluster: Any, size: int) -> str:
    name = evidence.name if cluster is None else f"cluster {cluster}"
    return f"{name}: {size} image{'s' * (size != 1)}"


def _caption(name: str, value: Any, classes: Sequence[str]) -> str:
    if name in CLASSED and isinstance(value, int) and 0 <= value < len(classes):
        value = classes[value]
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return f"{name} {text}"[:20]


# -- blame -----------------------------------------------------------------------------------------


def draw_blame(explanation: Explanation, path: Path) -> bool:
    """Draw each layer's weight change as a matrix, blamed parts marked; False if it has none."""
    from matplotlib.figure import Figure

    layers = [x for x in explanation.original.layers() if x.kind != "batchnorm"]
    blamed = explanation.localisation
    named = set(blamed.layer) if blamed is not None else set()
    shown = [x for x in layers if x.name in named or _moved(explanation, x)]
    if not shown:
        return False
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, layer in zip(grid, shown, strict=False):
        _draw_layer(axis, explanation, layer)
    for axis in grid[len(shown) :]:
        axis.set_axis_off()
    kind = "none" if blamed is None else f"{len(blamed)} {blamed.kind}s"
    figure.suptitle(
        f"{explanation.record.entrant.approach} on {explanation.record.subject}\n"
        f"dark: large change; red: blamed ({kind})",
        fontsize=10,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return True


def _moved(explanation: Explanation, layer: Layer) -> bool:
    delta = explanation.delta(layer)
    return delta is not None and bool(delta.any())


def _draw_layer(axis: "Axes", explanation: Explanation, layer: Layer) -> None:
    weight = explanation.original.weights[layer.weight]
    delta = explanation.delta(layer)
    matrix = np.abs(np.zeros_like(weight) if delta is None else delta).reshape(len(weight), -1)
    drawn = _pooled(matrix)
    axis.imshow(
        drawn, cmap="Greys", aspect="auto", interpolation="nearest",
        extent=(0, matrix.shape[1], len(matrix), 0), vmin=0, vmax=drawn.max() or 1.0,
    )  # fmt: skip
    changed = int(np.count_nonzero(matrix))
    share = f"{changed} of {matrix.size} weights changed"
    axis.set_title(f"{layer.name}\n{share}", fontsize=8)
    axis.set_xlabel("inputs", fontsize=7)
    axis.set_ylabel("outputs", fontsize=7)
    axis.tick_params(labelsize=6)
    _mark(axis, explanation, layer, matrix.shape[1])


def _mark(axis: "Axes", explanation: Explanation, layer: Layer, width: int) -> None:
    """Mark what is blamed in a layer: weights as dots, neurons as lines, a layer as a frame."""
    blamed = explanation.localisation
    if blamed is None:
        return
    here = [
        int(i) for name, i in zip(blamed.layer, blamed.index, strict=True) if name == layer.name
    ]
    here = here[:MOST_MARKS]
    if blamed.kind == "weight" and here:
        rows, columns = np.divmod(here, width)
        axis.scatter(columns + 0.5, rows + 0.5, s=9, facecolors="none", edgecolors=RED, lw=0.7)
    elif blamed.kind == "neuron":
        for row in here:
            axis.axhline(row + 0.5, color=RED, lw=0.7, alpha=0.7)
    elif here:
        for spine in axis.spines.values():
            spine.set(color=RED, linewidth=2)


def _pooled(matrix: np.ndarray) -> np.ndarray:
    """Return the largest value of each block, so that one changed weight stays visible."""
    for axis in (0, 1):
        size = matrix.shape[axis]
        if size > CELLS:
            starts = np.unique(np.linspace(0, size, CELLS, endpoint=False).astype(int))
            matrix = np.maximum.reduceat(matrix, starts, axis=axis)
    return matrix
