"""Labelled images in splits: memory-mapped arrays with groups and class risks."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path, write_text
from modelfix_core.images import INDEX_FILE, ImageFiles

SPLITS = ("train", "validation", "repair", "test")
OWN_FRACTIONS = {"train": 0.6, "validation": 0.1, "repair": 0.15, "test": 0.15}


@dataclass(frozen=True, init=False)
class Split:
    """Labelled images of one split.

    Attributes
    ----------
    x : ndarray or ImageFiles, [N, C, H, W]
        uint8 (0 to 255) or float32 (0 to 1), usually memory-mapped or decoded from image files on
        the way; read it with `images`.
    y : ndarray of int64, [N]
        Class indices from 0.
    group : ndarray of int64, [N], or None
        Value of the sensitive attribute.
    ids : ndarray of int64, [N]
        Position of each image in its source, by default that in the split; two splits of a
        dataset never share one.
    """

    x: np.ndarray | ImageFiles
    y: np.ndarray
    group: np.ndarray | None
    ids: np.ndarray

    # Written out because `ids` may be left out although a split always has them.
    def __init__(
        self,
        x: np.ndarray | ImageFiles,
        y: np.ndarray,
        group: np.ndarray | None = None,
        ids: np.ndarray | None = None,
    ) -> None:
        ids = np.arange(len(y), dtype=np.int64) if ids is None else ids
        for name, values in (("x", x), ("group", group), ("ids", ids)):
            if values is not None and len(values) != len(y):
                raise ModelfixError(
                    f"{name} has {len(values)} entries but there are {len(y)} labels; "
                    "give one per image."
                )
        if x.ndim != 4:
            raise ModelfixError(
                f"images have shape {x.shape}; expected [N, C, H, W] (images, channels, "
                "height, width)."
            )
        for name, values in (("x", x), ("y", y), ("group", group), ("ids", ids)):
            object.__setattr__(self, name, values)

    def __len__(self) -> int:
        return len(self.y)

    def images(self, index: Any = slice(None)) -> np.ndarray:
        """Return the images at `index` as contiguous float32 in [0, 1], [n, C, H, W]."""
        x = np.ascontiguousarray(self.x[index])
        return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)

    def batches(self, size: int) -> Iterator[slice]:
        """Yield slices of at most `size` images that cover the split in order."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def select(self, index: Any) -> "Split":
        """Return the samples at `index` (positions or a boolean mask)."""
        group = None if self.group is None else self.group[index]
        x = self.x.select(index) if isinstance(self.x, ImageFiles) else self.x[index]
        return Split(x, self.y[index], group, self.ids[index])

    def validate(self, name: str, classes: int) -> None:
        """Raise `ModelfixError` if the split is empty, mislabelled or not within [0, 1]."""
        if len(self) == 0:
            raise ModelfixError(f"the {name} split is empty; it needs at least one image.")
        if self.y.min() < 0 or self.y.max() >= classes:
            bad = int(self.y.max() if self.y.max() >= classes else self.y.min())
            raise ModelfixError(
                f"the {name} split has label {bad}; labels must lie in 0 to {classes - 1}."
            )
        if self.x.dtype == np.uint8:
            return
        for batch in self.batches(4096):
            x = self.x[batch]
            if not np.isfinite(x).all():
                raise ModelfixError(
                    f"the {name} split has NaN or infinite pixels (first in image "
                    f"{batch.start + int(np.argmin(np.isfinite(x).all(axis=(1, 2, 3))))}); "
                    "remove or repair these images."
                )
            if x.min() < 0 or x.max() > 1:
                raise ModelfixError(
                    f"the {name} split has pixels from {x.min():g} to {x.max():g}; expected 0 to 1 "
                    "(or uint8), with any normalisation inside the model."
                )

    def save(self, folder: Path) -> None:
        """Write ``x.npy`` (or an index of image files), ``y``, ``ids`` and any ``group``."""
        arrays = {"x": self.x, "y": self.y, "ids": self.ids, "group": self.group}
        if isinstance(self.x, ImageFiles):
            self.x.save(folder / INDEX_FILE)
            del arrays["x"]
        for name, values in arrays.items():
            target = folder / f"{name}.npy"
            if values is not None and not _lies_at(values, target):
                with atomic_path(target) as path, path.open("wb") as file:
                    np.save(file, values)

    @classmethod
    def load(cls, folder: Path) -> "Split":
        """Memory-map a split that `save` wrote."""
        folder = Path(folder)

        def read(name: str) -> np.ndarray | None:
            path = folder / f"{name}.npy"
            if not path.exists():
                return None
            try:
                return np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, OSError, EOFError) as error:
                raise ModelfixError(
                    f"{path}: is not a readable NumPy array; prepare the subject again."
                ) from error

        index = folder / INDEX_FILE
        x = ImageFiles.load(index) if index.exists() else read("x")
        y = read("y")
        if x is None or y is None:
            raise ModelfixError(
                f"{folder}: the {folder.name} split is missing (no x.npy and y.npy); prepare the "
                "subject again."
            )
        return cls(x, np.asarray(y), _array(read("group")), _array(read("ids")))


def _lies_at(values: Any, path: Path) -> bool:
    """Return whether `values` is the memory-mapped content of that very file."""
    if not isinstance(values, np.memmap) or not isinstance(values.base, mmap):
        return False  # a part of a file is not that file
    values.flush()
    return Path(values.filename) == path.resolve()


def _array(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values)


@dataclass(frozen=True)
class Dataset:
    """Splits of labelled images with what is known of their classes.

    Attributes
    ----------
    splits : mapping of str to Split
        Keys out of ``train``, ``validation``, ``repair``, ``test``.
    classes : sequence of str
        Class names; labels are positions in it.
    risks : mapping of int to float, or None
        Weight of a mistake per class.
    group_name : str or None
        Name of the sensitive attribute that ``group`` holds.
    """

    splits: Mapping[str, Split]
    classes: Sequence[str]
    risks: Mapping[int, float] | None = None
    group_name: str | None = None

    def __getitem__(self, name: str) -> Split:
        try:
            return self.splits[name]
        except KeyError:
            raise ModelfixError(
                f"the dataset has no {name} split; it has {', '.join(self.splits) or 'none'}."
            ) from None

    def get(self, name: str) -> Split | None:
        """Return the split, or None where the dataset has none of that name."""
        return self.splits.get(name)

    def validate(self) -> None:
        """Raise `ModelfixError` for the first thing wrong with any split."""
        for name, split in self.splits.items():
            split.validate(name, len(self.classes))

    def save(self, folder: Path) -> None:
        """Write every split below `folder` and ``dataset.json`` last."""
        folder = Path(folder)
        for name, split in self.splits.items():
            split.save(folder / name)
        card = {
            "classes": list(self.classes),
            "risks": None if self.risks is None else {str(k): v for k, v in self.risks.items()},
            "group_name": self.group_name,
            "splits": {name: len(split) for name, split in self.splits.items()},
        }
        write_text(folder / "dataset.json", json.dumps(card, indent=2))

    @classmethod
    def load(cls, folder: Path, splits: Sequence[str] = SPLITS) -> "Dataset":
        """Memory-map the named splits of a dataset that `save` wrote."""
        path = Path(folder) / "dataset.json"
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelfixError(f"{path}: is missing; prepare the subject first.") from None
        except ValueError as error:
            raise ModelfixError(f"{path}: is not valid JSON; prepare the subject again.") from error
        risks = card["risks"]
        return cls(
            {name: Split.load(path.parent / name) for name in splits if name in card["splits"]},
            card["classes"],
            None if risks is None else {int(k): float(v) for k, v in risks.items()},
            card["group_name"],
        )

    @classmethod
    def from_arrays(
        cls,
        x: np.ndarray,
        y: np.ndarray,
        *,
        group: np.ndarray | None = None,
        classes: Sequence[str] | None = None,
        seed: int = 0,
    ) -> "Dataset":
        """Split arrays into train, validation, repair, test (60/10/15/15 %), stratified.

        Parameters
        ----------
        x : ndarray, [N, C, H, W] or [N, H, W]
            uint8, or float in [0, 1].
        y : ndarray of int, [N]
        group : ndarray of int, [N], optional
        classes : sequence of str, optional
            Class names; default the numbers.
        seed : int
            Of the draw of the splits.
        """
        return _labelled(x, y, group, classes).divide(seed)

    @classmethod
    def from_npz(cls, path: Path, seed: int = 0) -> "Dataset":
        """Read ``x``, ``y``, if present ``group`` and ``classes``, from an NPZ file and split."""
        return cls.read(path, seed)

    @classmethod
    def from_folder(cls, folder: Path, seed: int = 0) -> "Dataset":
        """Read one sub-folder of images per class (names sorted) and split, stratified by class."""
        return cls.read(folder, seed)

    @classmethod
    def read(cls, path: Path, seed: int = 0, **options: Any) -> "Dataset":
        """Read any kind of one's own data, with `options` as for `modelfix_core.readers.find`.

        Splits that the data give are respected; without any, all are drawn (60/10/15/15 %).
        """
        from modelfix_core.readers import find

        return find(path, **options).divided(seed)

    @classmethod
    def whole(cls, path: Path, **options: Any) -> "Dataset":
        """Read any kind of one's own data as one split named ``whole``."""
        from modelfix_core.readers import find

        dataset = find(path, **options).whole()
        dataset.validate()
        return dataset

    def divide(self, seed: int = 0) -> "Dataset":
        """Divide the split ``whole`` into train, validation, repair and test (60/10/15/15 %)."""
        whole = self["whole"]
        parts = stratified(whole.y, OWN_FRACTIONS, seed)
        splits = {name: whole.select(index) for name, index in parts.items()}
        return Dataset(splits, self.classes, self.risks, self.group_name)


def _labelled(
    x: np.ndarray,
    y: np.ndarray,
    group: np.ndarray | None,
    classes: Sequence[str] | None,
    source: str = "the data",
) -> Dataset:
    """Check arrays and make a dataset with the one split ``whole`` of them."""
    x = np.asarray(x)[:, None] if np.ndim(x) == 3 else np.asarray(x)
    y = np.asarray(y)
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise ModelfixError(
            f"{source}: labels are {y.dtype} of shape {list(y.shape)}; expected one integer from 0 "
            "per image."
        )
    if x.dtype != np.uint8:
        x = x.astype(np.float32)
    whole = Split(x, y.astype(np.int64), None if group is None else np.asarray(group, np.int64))
    names = list(classes) if classes else [str(k) for k in range(int(y.max(initial=0)) + 1)]
    whole.validate("whole", len(names))
    return Dataset({"whole": whole}, names)


def stratified(y: np.ndarray, fractions: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Draw disjoint sorted index sets whose class shares follow those of `y`.

    Parameters
    ----------
    y : ndarray of int, [N]
    fractions : mapping of str to float
        Share of each part; they sum to 1.
    seed : int

    Returns
    -------
    dict of str to ndarray of int64
    """
    rng = np.random.default_rng(seed)
    # Each sample's relative position within its shuffled class; cutting there keeps class shares.
    order = rng.permutation(len(y))
    position = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    ranks = np.argsort(np.argsort(position, kind="stable"), kind="stable")
    edges = np.round(np.cumsum([0.0, *fractions.values()]) * len(y)).astype(int)
    return {
        name: np.flatnonzero((ranks >= low) & (ranks < high))
        for name, low, high in zip(fractions, edges[:-1], edges[1:], strict=True)
    }
