"""ImageNet (ILSVRC 2012) as its usual folders; the images stay files."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.images import ImageFiles
from modelfix_core.subjects.sources.base import Source

RESIZE = 256  # of the shorter side, before the middle is cut out
SUFFIXES = (".jpeg", ".jpg")
KAGGLE, CAFFE = "LOC_val_solution.csv", "val.txt"


@dataclass(frozen=True)
class ImageNetClass:
    """A class: WordNet id, name, and whether WordNet places it below "vehicle"."""

    wnid: str
    name: str
    vehicle: bool


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the 1,000 classes in the order of their labels."""
    path = Path(__file__).parents[1] / "data" / "imagenet" / "classes.tsv"
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line[0] != "#"]
    return tuple(ImageNetClass(wnid, name, bool(rest)) for wnid, name, *rest in rows)


@dataclass(frozen=True, kw_only=True)
class ImageNetSource(Source):
    """Folders ``train/<wnid>`` and ``val``, with folders as well or flat beside a file of labels.

    Attributes
    ----------
    wnids : tuple of str
        WordNet ids of the classes, by label.
    """

    shape: tuple[int, int, int] = (3, 224, 224)
    wnids: tuple[str, ...] = field(
        default_factory=lambda: tuple(c.wnid for c in imagenet_classes())
    )

    @property
    def wanted(self) -> str:
        """The archives, their address and the folders that are expected."""
        return (
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (ILSVRC 2012, after registration) "
            f"from {self.homepage}, unpack them into train/<WordNet id>/*.JPEG and "
            f"val/<WordNet id>/*.JPEG (or val/*.JPEG beside {KAGGLE} or {CAFFE})"
        )

    def _layouts(self, root: Path) -> list[Path]:
        return [root / self.name, root / "ILSVRC2012", root / "ILSVRC" / "Data" / "CLS-LOC"]

    def _complete(self, folder: Path) -> bool:
        return (folder / "train").is_dir() and (folder / "val").is_dir()

    def _read(self, folder: Path) -> dict[str, Split]:
        parts: dict[str, Split] = {}
        start = 0
        for part, size in self.sizes.items():
            paths, y = self._list(folder, part)
            if len(paths) != size:
                raise ModelfixError(
                    f"{folder / part}: holds {len(paths):,} images; {self.title} has {size:,} "
                    "there, unpack the archive again."
                )
            images = ImageFiles.of(folder.resolve(), paths, self.shape[1], RESIZE)
            parts[part] = Split(images, y, ids=np.arange(start, start + size))
            start += size
        return parts

    def _list(self, folder: Path, part: str) -> tuple[list[str], np.ndarray]:
        """Return the paths of a part, relative to `folder`, and their labels."""
        missing = [wnid for wnid in self.wnids if not (folder / part / wnid).is_dir()]
        if len(missing) == len(self.wnids) and part == "val":
            return self._list_flat(folder)
        if missing:
            raise ModelfixError(
                f"{folder / part}: lacks {len(missing)} of the {len(self.wnids)} class folders, "
                f"the first is {missing[0]}; unpack the archive again."
            )
        paths: list[str] = []
        counts: list[int] = []
        for wnid in self.wnids:
            names = _images(folder / part / wnid)
            if not names:
                raise ModelfixError(
                    f"{folder / part / wnid}: holds no images; unpack the archive again."
                )
            paths += [f"{part}/{wnid}/{name}" for name in names]
            counts.append(len(names))
        return paths, np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def _list_flat(self, folder: Path) -> tuple[list[str], np.ndarray]:
        labels = self._ground_truth(folder)
        names = _images(folder / "val")
        unknown = [name for name in names if name not in labels]
        if unknown:
            raise ModelfixError(
                f"{folder / 'val' / unknown[0]}: has no label ({len(unknown)} images have none); "
                f"put {KAGGLE} or {CAFFE} of the same images beside the folder val."
            )
        return [f"val/{n}" for n in names], np.array([labels[n] for n in names], np.int64)

    def _ground_truth(self, folder: Path) -> Mapping[str, int]:
        """Read the labels of flat validation images, in the form of Kaggle's or Caffe's file."""
        places = (folder, folder / "val", *folder.parents[:2])
        for path in (place / name for name in (KAGGLE, CAFFE) for place in places):
            if path.is_file():
                try:
                    return dict(self._rows(path))
                except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
                    raise ModelfixError(
                        f"{path}: is no list of labels (at {error}); expected a line per image: "
                        "ILSVRC2012_val_NNNNNNNN,WordNet-id ... or ILSVRC2012_val_NNNNNNNN.JPEG "
                        "label."
                    ) from error
        raise ModelfixError(
            f"{folder / 'val'}: has neither class folders nor a list of labels; put {KAGGLE} or "
            f"{CAFFE} beside it."
        )

    def _rows(self, path: Path) -> Iterator[tuple[str, int]]:
        label = {wnid: number for number, wnid in enumerate(self.wnids)}
        lines = path.read_text(encoding="utf-8").splitlines()
        for line in lines[1:] if path.name == KAGGLE else lines:
            if path.name == KAGGLE:
                name, boxes = line.split(",")
                yield f"{name}.JPEG", label[boxes.split()[0]]
            else:
                name, number = line.split()
                yield name, range(len(self.wnids))[int(number)]


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES))
