"""One's own data: labelled images in folders and files, listed first, decoded block by block.

========================= =========================================================================
class folders             ``data/<class>/*.png``, or ``data/<split>/<class>/*.png``
folder and labels         images, and a CSV with the columns ``file``, ``label``
NPZ                       arrays ``x``, ``y`` and perhaps ``group``, ``split``, ``classes``
NPY and labels            images in ``x.npy``; labels in an NPY file or a CSV with ``label``
Parquet                   columns ``image`` (encoded images, or {bytes, path}), ``label``; one file,
                          or a folder of them
========================= =========================================================================

A CSV or Parquet file may have a column ``split`` and one for the sensitive attribute. Nothing is
ever unpickled, and only one block of images is in memory while splits are written.
"""

import csv
import io
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelfix_core.dataset import OWN_FRACTIONS, SPLITS, Dataset, Split, stratified
from modelfix_core.errors import ModelfixError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "val": "validation", "valid": "validation", "testing": "test"},
}
BLOCK = 512  # images in memory at once
GROUP = "group"
KINDS = (
    "a folder with a sub-folder of images per class, a folder of images with --labels, an NPZ or "
    "NPY file, or Parquet"
)
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,  # of a plain array, which is no context manager
    zipfile.BadZipFile,
    zlib.error,
)


class Images(Protocol):
    """Images of one shape [C, H, W], uint8 (0 to 255) or float32, read in order."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all images in order, [n, C, H, W] at a time."""
        ...


@dataclass(frozen=True)
class Listing:
    """Labelled images that were found and not yet decoded.

    Attributes
    ----------
    images : Images
    y : ndarray of int64, [N]
    classes : list of str
    group : ndarray of int64, [N], or None
        Positions in `group_values`.
    group_values : list of str, or None
        Values of the sensitive attribute.
    split : ndarray of str, [N], or None
        The split of each image, where the data say it.
    """

    images: Images
    y: np.ndarray
    classes: list[str]
    group: np.ndarray | None = None
    group_values: list[str] | None = None
    split: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def ordered(self, classes: Sequence[str]) -> "Listing":
        """Return the listing with its labels as positions in `classes` (the same names)."""
        position = np.array([list(classes).index(name) for name in self.classes])
        return replace(self, y=position[self.y], classes=list(classes))

    def parts(self, seed: int) -> dict[str, np.ndarray]:
        """Return the positions of the images of every split.

        Given splits are respected; what is missing is drawn from the given ``test`` (else
        ``validation``, else ``repair``) split, by class and group. Without given splits all are
        drawn, 60/10/15/15 %.
        """
        key = self.y if self.group is None else self.y * (self.group.max() + 1) + self.group
        given = self.given_splits
        if not given:
            return stratified(key, OWN_FRACTIONS, seed)
        parts = {name: np.flatnonzero(self.split == name) for name in given}
        missing = [name for name in SPLITS if name not in given and name != "train"]
        if missing:
            donor = self.donor
            shares = {name: OWN_FRACTIONS[name] for name in [donor, *missing]}
            total = sum(shares.values())
            drawn = stratified(
                key[parts[donor]], {name: share / total for name, share in shares.items()}, seed
            )
            parts |= {name: parts[donor][index] for name, index in drawn.items()}
        return {name: parts[name] for name in SPLITS if name in parts}

    @property
    def given_splits(self) -> list[str]:
        """Names of the splits that the data give; [] where all images are of one."""
        names = [] if self.split is None else [n for n in SPLITS if (self.split == n).any()]
        return names if len(names) > 1 else []

    @property
    def notes(self) -> list[str]:
        """What was decided about the splits."""
        given = self.given_splits
        missing = [name for name in SPLITS if name not in given and name != "train"]
        if not given or not missing:
            return []
        return [f"{' and '.join(missing)} were drawn from the given {self.donor} split, stratified"]

    @property
    def donor(self) -> str:
        """The given split from which missing ones are drawn; the model has not learned from it."""
        return next(name for name in ("test", "validation", "repair") if name in self.given_splits)

    def whole(self) -> Dataset:
        """Decode everything into memory, as the one split ``whole``."""
        x = np.empty((len(self), *self.images.shape), self.images.dtype)
        for where, block in self._blocks():
            x[where] = block
        return Dataset({"whole": Split(x, self.y, self.group)}, self.classes)

    def divided(self, seed: int) -> Dataset:
        """Decode everything into memory, as splits."""
        whole = self.whole()["whole"]
        parts = self.parts(seed).items()
        return Dataset({name: whole.select(index) for name, index in parts}, self.classes)

    def write(self, folder: Path, seed: int) -> dict[str, Split]:
        """Decode once, straight into memory-mapped ``<folder>/<split>/x.npy``."""
        parts = self.parts(seed)
        names = list(parts)
        number = np.empty(len(self), np.int64)
        position = np.empty(len(self), np.int64)
        for index, name in enumerate(names):
            number[parts[name]] = index
            position[parts[name]] = np.arange(len(parts[name]))
        targets = [self._target(folder / name, len(parts[name])) for name in names]
        for where, block in self._blocks():
            for index, target in enumerate(targets):
                chosen = number[where] == index
                target[position[where][chosen]] = block[chosen]
        return {
            name: Split(x, self.y[index], None if self.group is None else self.group[index], index)
            for x, (name, index) in zip(targets, parts.items(), strict=True)
        }

    def _target(self, folder: Path, count: int) -> np.ndarray:
        if not count:
            raise ModelfixError(
                f"the {folder.name} split is empty; there are only {len(self)} images, give more."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(
            folder / "x.npy", "w+", self.images.dtype, (count, *self.images.shape)
        )

    def _blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        start = 0
        for block in self.images.blocks():
            yield slice(start, start + len(block)), block
            start += len(block)


def find(
    path: str | Path,
    *,
    labels: str | Path | None = None,
    group_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> Listing:
    """List the labelled images of `path`; only labels and the first image are read.

    Parameters
    ----------
    path : str or Path
        One of the kinds of data that this module names.
    labels : str or Path, optional
        CSV or NPY file, where the labels lie apart from the images.
    group_column : str, optional
        Column (or array of an NPZ file) with the sensitive attribute; default ``group`` if the
        data have it.
    classes : sequence of str, optional
        Class names in the order of the model's outputs; default sorted, or the numbers.

    Raises
    ------
    ModelfixError
        If something is missing or cannot be read, or labels and images do not belong together.
    """
    path = Path(path)
    if not path.exists():
        raise ModelfixError(f"{path}: does not exist; give {KINDS}.")
    read = _reader(path, labels)
    listing = read(path, None if labels is None else Path(labels), group_column, classes)
    if not len(listing):
        raise ModelfixError(f"{path}: holds no images.")
    if len(listing.images) != len(listing):
        raise ModelfixError(
            f"{path}: there are {len(listing.images)} images but {len(listing)} labels; give one "
            "label per image."
        )
    return listing


def _reader(path: Path, labels: str | Path | None) -> Any:
    suffix = path.suffix.lower()
    if path.is_dir():
        if any(path.glob("*.parquet")):
            return _parquet
        return _class_folders if labels is None else _labelled_folder
    readers = {".npz": _npz, ".npy": _npy, ".parquet": _parquet}
    if suffix not in readers:
        raise ModelfixError(f"{path}: is of no kind that can be read; give {KINDS}.")
    if labels is not None and suffix != ".npy":
        raise ModelfixError(f"{path}: holds its own labels; leave --labels out.")
    return readers[suffix]


# -- image files -----------------------------------------------------------------------------------


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


def _class_folders(
    folder: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
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
    y, classes = _numbered(names, classes, str(folder))
    return Listing(_files(paths), y, classes, split=np.array(of_split) if given else None)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_images(root: Path) -> Iterator[tuple[str, Path]]:
    for folder in _subfolders(root):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield folder.name, path


def _labelled_folder(
    folder: Path, labels: Path, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    table = _read_csv(labels, ("file", "label"))
    paths = [folder / name for name in table["file"]]
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ModelfixError(f"{labels}: {path} lies outside the folder of the images.")
        if not path.is_file():
            raise ModelfixError(f"{path}: does not exist, but {labels} names it.")
    return _from_columns(_files(paths), table, group_column, classes, str(labels))


# -- arrays ----------------------------------------------------------------------------------------


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
        if len(shape) not in (3, 4) or dtype.kind not in "uif":
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


def _npy(
    path: Path, labels: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
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
        table = _read_csv(labels, ("label",))
    return _from_columns(images, table, group_column, classes, str(labels))


def _load_npy(path: Path) -> np.ndarray:
    with _explained(path, "a readable NPY file without pickled objects"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an NPZ file")
        return array


def _npz(
    path: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    what = "a readable NPZ file without pickled objects"
    with _explained(path, what), np.load(path, allow_pickle=False) as file:
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
        with _explained(path, what):
            yield from _npz_blocks(path)

    return _from_columns(
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
    if dtype.hasobject:
        raise ValueError("x holds pickled objects")
    if fortran:
        raise ValueError("x is stored in Fortran order, use np.ascontiguousarray")
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


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet(
    path: Path, _: Path | None, group_column: str | None, classes: Sequence[str] | None
) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    with _explained(path, "readable Parquet", pa.ArrowException):
        schema = pq.read_schema(shards[0])
        image = next((name for name in ("image", "img") if name in schema.names), None)
        if image is None or "label" not in schema.names:
            raise ModelfixError(
                f"{path}: has the columns {', '.join(schema.names)}; expected image and label."
            )
        wanted = {"label", "split", group_column or GROUP} & set(schema.names)
        if group_column and group_column not in wanted:
            raise _no_column(str(path), group_column, schema.names)
        parts = [pq.read_table(shard, columns=sorted(wanted)) for shard in shards]
        table = {name: pa.concat_tables(parts)[name].to_pylist() for name in wanted}
    if "split" not in table and all(_split_of(shard) for shard in shards):
        pairs = zip(shards, parts, strict=True)
        table["split"] = [_split_of(shard) for shard, part in pairs for _ in range(len(part))]
    if classes is None:
        classes = _huggingface_classes(schema.metadata)

    def batches() -> Iterator[list[tuple[str, Any]]]:
        with _explained(path, "readable Parquet", pa.ArrowException):
            for shard in shards:
                start = 0
                for batch in pq.ParquetFile(shard).iter_batches(BLOCK, columns=[image]):
                    values = batch.column(0).to_pylist()
                    yield [
                        (f"{shard}, image {start + i}", _encoded(shard, start + i, value))
                        for i, value in enumerate(values)
                    ]
                    start += len(values)

    if not table["label"]:
        raise ModelfixError(f"{path}: holds no images.")
    images = Encoded(len(table["label"]), batches)
    return _from_columns(images, table, group_column, classes, str(path))


def _split_of(shard: Path) -> str | None:
    """Return the split in the name of a shard such as ``train-00000-of-00002.parquet``."""
    return SPLIT_NAMES.get(shard.stem.split("-")[0])


def _encoded(shard: Path, number: int, value: Any) -> bytes | Path:
    if isinstance(value, dict):
        inside, outside = value.get("bytes"), value.get("path")
        value = inside if inside or not outside else shard.parent / outside
    if not isinstance(value, bytes | Path):
        raise ModelfixError(
            f"{shard}, image {number}: is {type(value).__name__}; expected the bytes of an encoded "
            "image, or {bytes, path}."
        )
    return value


def _huggingface_classes(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """Return the class names that Hugging Face datasets keep in the schema, if they are there."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


# -- labels, groups and splits ---------------------------------------------------------------------


def _read_csv(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Read a CSV file with a header as columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelfixError(
            f"{path}: is no readable CSV file of labels ({reason}); give one with the columns "
            f"{', '.join(needed)}."
        ) from error
    columns = list(rows[0]) if rows else []
    for name in needed:
        if name not in columns:
            raise _no_column(str(path), name, [str(column) for column in columns])
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ModelfixError(
                f"{path}: line {line} has another number of values than the header; repair it."
            )
    return {name: [row[name].strip() for row in rows] for name in columns}


def _no_column(source: str, name: str, columns: Iterable[str]) -> ModelfixError:
    return ModelfixError(
        f"{source}: has no column {name!r}; its columns are {', '.join(columns) or 'none'}."
    )


def _from_columns(
    images: Images,
    table: dict[str, Any],
    group_column: str | None,
    classes: Sequence[str] | None,
    source: str,
) -> Listing:
    y, names = _numbered(table["label"], classes, source)
    if group_column and group_column not in table:
        raise _no_column(source, group_column, table)
    group, values = _groups(table.get(group_column or GROUP), source)
    for what, column in table.items():
        if len(column) != len(y):
            raise ModelfixError(
                f"{source}: {what} has {len(column)} entries but there are {len(y)} labels; give "
                "one per image."
            )
    split = None if "split" not in table else _splits(table["split"], source)
    return Listing(images, y, names, group, values, split)


def _numbered(
    labels: Sequence[Any], classes: Sequence[str] | None, source: str
) -> tuple[np.ndarray, list[str]]:
    """Return labels as positions in the class names, and these names."""
    numbers = _as_numbers(labels, source)
    if numbers is not None and (classes is None or not set(map(str, labels)) <= set(classes)):
        names = list(classes or map(str, range(int(numbers.max(initial=0)) + 1)))
        for bad in numbers[(numbers < 0) | (numbers >= len(names))]:
            raise ModelfixError(
                f"{source}: has label {bad}; labels must lie in 0 to {len(names) - 1}."
            )
        return numbers, names
    texts = [str(label) for label in labels]
    known = list(classes) if classes else sorted(set(texts))
    position = {name: number for number, name in enumerate(known)}
    for text in texts:
        if text not in position:
            raise ModelfixError(
                f"{source}: has the label {text!r}; the classes are {', '.join(known)}."
            )
    return np.array([position[text] for text in texts], np.int64), known


def _as_numbers(labels: Sequence[Any], source: str) -> np.ndarray | None:
    """Return labels that are integers, or texts of integers, as int64; None for names."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iuUO":
        raise ModelfixError(
            f"{source}: labels are {array.dtype} of shape {list(array.shape)}; expected one "
            "integer from 0 or class name per image."
        )
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if any(label is None or label == "" for label in labels):
        raise ModelfixError(f"{source}: some images have no label; give one per image.")
    try:
        return np.array([int(label) for label in labels], np.int64)
    except (ValueError, TypeError):
        return None


def _groups(column: Any, source: str) -> tuple[np.ndarray | None, list[str] | None]:
    if column is None:
        return None, None
    if any(value is None or value == "" or value != value for value in column):
        raise ModelfixError(f"{source}: some images have no group; give one per image.")
    values, positions = np.unique(np.asarray(column), return_inverse=True)
    return positions.astype(np.int64), [str(value) for value in values]


def _splits(column: Any, source: str) -> np.ndarray:
    for name in column:
        if str(name) not in SPLIT_NAMES:
            raise ModelfixError(
                f"{source}: has the split {str(name)!r}; splits are called {', '.join(SPLITS)}."
            )
    return np.array([SPLIT_NAMES[str(name)] for name in column])


@contextmanager
def _explained(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what readers raise into one sentence: `path` is not `what`."""
    try:
        yield
    except ModelfixError:
        raise
    except (*UNREADABLE, *more) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelfixError(f"{path}: is not {what} ({reason}).") from error
