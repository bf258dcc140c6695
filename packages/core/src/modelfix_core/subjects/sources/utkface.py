"""UTKFace: faces whose file names tell age, gender and race."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.images import ImageFiles
from modelfix_core.subjects.sources.base import Source

# [age]_[gender]_[race]_[date and time].jpg, and .chip.jpg for the aligned and cropped faces.
NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<race>[0-4])_\d+\.jpg(\.chip\.jpg)?")
WHITE = "0"
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class UtkFaceSource(Source):
    """UTKFace with gender as the class and race, white (0) against the rest (1), as the group."""

    shape: tuple[int, int, int] = (3, 64, 64)
    group_name: str | None = "race"

    @property
    def wanted(self) -> str:
        """The archive and its address."""
        return (
            f"the aligned and cropped faces (UTKFace.tar.gz) from {self.homepage} (by hand, for "
            "research), unpack the .jpg.chip.jpg files"
        )

    def _layouts(self, root: Path) -> list[Path]:
        return [root / self.name, root / "UTKFace", root / self.name / "UTKFace"]

    def _complete(self, folder: Path) -> bool:
        return any(folder.glob("*.jpg"))

    def _read(self, folder: Path) -> dict[str, Split]:
        files = sorted(path.name for path in folder.glob("*.jpg"))
        found = {name: match for name in files if (match := NAME.fullmatch(name))}
        self._report([name for name in files if name not in found], folder)
        ((part, size),) = self.sizes.items()
        if len(found) != size:
            raise ModelfixError(
                f"{folder}: holds {len(found):,} images named AGE_GENDER_RACE_DATE.jpg.chip.jpg; "
                f"{self.title} has {size:,}, fetch the archive again."
            )
        side = self.shape[1]
        x = np.array(ImageFiles.of(folder, list(found), side, resize=side))
        y = np.array([int(match["gender"]) for match in found.values()], dtype=np.int64)
        group = np.array([match["race"] != WHITE for match in found.values()], dtype=np.int64)
        return {part: Split(x, y, group)}

    def _report(self, broken: list[str], folder: Path) -> None:
        if not broken:
            return
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        print(
            f"{folder}: {len(broken)} of the images are left out because their names do not tell "
            f"age, gender and race ({', '.join(broken[:SHOWN])}{more}).",
            file=sys.stderr,
        )
