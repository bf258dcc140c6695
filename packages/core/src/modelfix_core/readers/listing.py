"""Labelled images that were found: their splits, and writing them block by block."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from modelfix_core.dataset import OWN_FRACTIONS, SPLITS, Dataset, Split, stratified
from modelfix_core.errors import ModelfixError

BLOCK = 512  # images in memory at once


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
    files : list of str, or None
        Path of each image within the data, where images are files.
    """

    images: Images
    y: np.ndarray
    classes: list[str]
    group: np.ndarray | None = None
    group_values: list[str] | None = None
    split: np.ndarray | None = None
    files: list[str] | None = None

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
