"""Image files: a folder per class, or a folder and a file of labels."""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.readers.columns import SPLIT_NAMES, from_columns, numbered, read_csv
from modelfix_core.readers.listing import BLOCK, Listing

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


class Encoded:
    """Encoded images (PNG, JPEG, ...), decoded in parallel.

    Parameters
    ----------
    count : int
    batches : callable
        Gives, each time it is called, (name, file or bytes) pairs in order, a batch at a time.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, count: int, batches: Any) -> None:
        self.count, self.batches = count, batches
        name, content = next(iter(next(iter(batches()))))
        self.first = name
        self.shape = decode(name, content).shape

    def __len__(self) -> int:
        return self.count

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all images in order."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for batch in self.batches():
                yield np.stack(list(pool.map(lambda pair: self._one(*pair), batch)))

    def _one(self, name: str, content: Any) -> np.ndarray:
        pixels = decode(name, content)
        if pixels.shape == (1, *self.shape[1:]):
            return np.broadcast_to(pixels, self.shape)  # a grey image among coloured ones
        if pixels.shape != self.shape:
            raise ModelfixError(
                f"{name}: has shape {list(pixels.shape)} (channels, height, width) where "
                f"{self.first} has {list(self.shape)}; all images must have one size and colour "
                "mode."
            )
        return pixels


def decode(name: str, content: Path | bytes) -> np.ndarray:
    """Return pixels as uint8 [C, H, W]: one channel for grey images, three for all others."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if image.mode.startswith(("I", "F")):
                raise ModelfixError(
                    f"{name}: has more than 8 bits per channel; store it with 8 bits."
                )
            grey = image.mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ModelfixError(f"{name}: is not a readable image; remove or replace it.") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _files(paths: Sequence[Path]) -> Encoded:
    def batches() -> Iterator[list[tuple[str, Path]]]:
        for start in range(0, len(paths), BLOCK):
            yield [(str(path), path) for path in paths[start : start + BLOCK]]

    return Encoded(len(paths), batches)


def class_folders(
    folder: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    """List images in one folder per class, or per split and class."""
    if group_column:
        raise ModelfixError(
            f"{folder}: class folders say nothing of {group_column!r}; give the groups with "
            f"--labels, a CSV with the columns file, label, {group_column}."
        )
    inner = _subfolders(folder)
    splits = {path: SPLIT_NAMES.get(path.name) for path in inner}
    given = bool(inner) and all(splits.values())
    found = [
        (path, name, split)
        for root, split in (splits.items() if given else [(folder, None)])
        for name, path in _class_images(root)
    ]
    if not found:
        raise ModelfixError(
            f"{folder}: no images found; expected one sub-folder per class with "
            f"{', '.join(sorted(IMAGE_SUFFIXES))} files."
        )
    paths, names, of_split = zip(*found, strict=True)
    known = sorted(set(names))
    if classes is None and set(known) != {str(number) for number in range(len(known))}:
        classes = known
    y, classes = numbered(names, classes, str(folder))
    return Listing(
        _files(paths),
        y,
        classes,
        split=np.array(of_split) if given else None,
        files=[path.relative_to(folder).as_posix() for path in paths],
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_images(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in _subfolders(root):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield folder.name, path


def labelled_folder(
    folder: Path, labels: Path, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    """List the images that a CSV file names."""
    table = read_csv(labels, ("file", "label"))
    paths = [folder / name for name in table["file"]]
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelfixError(f"{labels}: {path} lies outside the folder of the images.")
        if not path.is_file():
            raise ModelfixError(f"{path}: does not exist, but {labels} names it.")
    listing = from_columns(_files(paths), table, group_column, classes, str(labels))
    return replace(listing, files=table["file"])
