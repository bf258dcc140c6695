"""Arrays of images: NPY and NPZ, without pickled objects."""

import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.readers.columns import explained, from_columns, read_csv
from modelfix_core.readers.listing import BLOCK, Listing


class Stored:
    """Images stored as numbers, brought to [N, C, H, W] and to uint8 or float32.

    Parameters
    ----------
    name : str
        How errors call the array.
    shape : tuple of int
        [N, C, H, W], [N, H, W, C] with one or three channels, or [N, H, W].
    dtype : dtype
    blocks : callable
        Gives, each time it is called, the stored array in consecutive blocks.
    """

    def __init__(self, name: str, shape: Sequence[int], dtype: np.dtype, blocks: Any) -> None:
        if len(shape) not in (3, 4) or dtype.kind not in "uif" or min(shape) < 0:
            raise ModelfixError(
                f"{name}: holds {dtype} of shape {list(shape)}; expected images [N, C, H, W] or "
                "[N, H, W, C], uint8 or float in 0 to 1."
            )
        self.name, self.count, self.stored = name, shape[0], blocks
        self.last = len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
        self.shape = self._arranged(np.empty((0, *shape[1:]))).shape[1:]
        self.dtype = np.dtype(np.float32 if dtype.kind == "f" else np.uint8)

    def __len__(self) -> int:
        return self.count

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all images in order."""
        for block in self.stored():
            if block.dtype.kind in "ui" and block.dtype != np.uint8:
                low, high = block.min(initial=0), block.max(initial=0)
                if low < 0 or high > 255:
                    raise ModelfixError(
                        f"{self.name}: has pixels from {low} to {high}; expected 0 to 255."
                    )
            yield self._arranged(block).astype(self.dtype, copy=False)

    def _arranged(self, block: np.ndarray) -> np.ndarray:
        if block.ndim == 3:
            return block[:, None]
        return block.transpose(0, 3, 1, 2) if self.last else block


def npy(
    path: Path, labels: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    """List images in an NPY file, with their labels in another."""
    if labels is None:
        raise ModelfixError(
            f"{path}: holds images only; give their labels with --labels, an NPY file or a CSV."
        )
    x = _load_npy(path)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(x), BLOCK):
            yield x[start : start + BLOCK]

    images = Stored(str(path), x.shape, x.dtype, blocks)
    if labels.suffix.lower() == ".npy":
        if group_column:
            raise ModelfixError(
                f"{labels}: holds labels only; give the groups with --labels, a CSV with the "
                f"columns label, {group_column}."
            )
        table: dict[str, Any] = {"label": _load_npy(labels)}
    else:
        table = read_csv(labels, ("label",))
    return from_columns(images, table, group_column, classes, str(labels))


def _load_npy(path: Path) -> np.ndarray:
    with explained(path, "a readable NPY file without pickled objects"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an NPZ file")
        return array


def npz(
    path: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    """List the images of an NPZ file."""
    what = "a readable NPZ file without pickled objects"
    with explained(path, what), np.load(path, allow_pickle=False) as file:
        names = set(file.files)
        if not {"x", "y"} <= names:
            raise ModelfixError(
                f"{path}: holds {sorted(names)}; expected arrays named x (images) and y (labels)."
            )
        _check_size(path)
        table = {key: file[key] for key in names - {"x", "y", "classes"} if file[key].ndim == 1}
        table["label"] = file["y"]
        if classes is None and "classes" in names:
            classes = [str(name) for name in file["classes"]]
        shape, dtype = _npz_header(path)

    def blocks() -> Iterator[np.ndarray]:
        with explained(path, what):
            yield from _npz_blocks(path)

    return from_columns(
        Stored(str(path), shape, dtype, blocks), table, group_column, classes, str(path)
    )


def _check_size(path: Path) -> None:
    """Refuse an archive that would fill the disk."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ModelfixError(
            f"{path}: would unpack to {size:,} bytes but only {free:,} are free on the disk."
        )


def _open_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"NPY format {version}")
    return read[version](file)


def _npz_header(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
        shape, fortran, dtype = _open_header(file)
        size = archive.getinfo("x.npy").file_size
    if dtype.hasobject:
        raise ValueError("x holds pickled objects")
    if fortran:
        raise ValueError("x is stored in Fortran order, use np.ascontiguousarray")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("x is cut short")
    return shape, dtype


def _npz_blocks(path: Path) -> Iterator[np.ndarray]:
    """Unpack ``x`` block by block, never as a whole."""
    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
        shape, _, dtype = _open_header(file)
        size = int(np.prod(shape[1:])) * dtype.itemsize
        for start in range(0, shape[0], BLOCK):
            count = min(BLOCK, shape[0] - start)
            content = file.read(count * size)
            if len(content) != count * size:
                raise ValueError("x is cut short")
            yield np.frombuffer(content, dtype).reshape(count, *shape[1:])
