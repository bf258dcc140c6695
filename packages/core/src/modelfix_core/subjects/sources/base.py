"""What all sources share: finding the files, or saying how to get them."""

import os
import shutil
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import explain_write_errors, replace_folder

DATA_VARIABLE = "MODELFIX_DATA"


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Labelled images in files of some format.

    Attributes
    ----------
    name : str
        Also the folder in which the files lie.
    title : str
    classes : tuple of str
    sizes : mapping of str to int
        Number of images of each part.
    shape : tuple of int
        Channels, height and width of the images as they are read.
    licence, homepage : str
    torchvision : str or None
        Class that downloads the files; None where they are fetched by hand.
    shipped : bool
        Whether the files come with this package.
    group_name : str or None
        What the images' group means, where the source tells one.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    sizes: Mapping[str, int]
    shape: tuple[int, int, int]
    licence: str
    homepage: str
    torchvision: str | None = None
    shipped: bool = False
    group_name: str | None = None

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What to fetch by hand, and where, as it follows the word "fetch"."""

    @abstractmethod
    def _layouts(self, root: Path) -> list[Path]:
        """Folders below `root` in which the files may lie."""

    @abstractmethod
    def _complete(self, folder: Path) -> bool:
        """Whether all files are in `folder`, by their names."""

    @abstractmethod
    def _read(self, folder: Path) -> dict[str, Split]:
        """Read the parts; ids count through them."""

    @property
    def _downloaded(self) -> str:
        """Folder that torchvision makes."""
        return str(self.torchvision)

    def read(self, data: Path | None = None) -> dict[str, Split]:
        """Find and read the images.

        Parameters
        ----------
        data : Path, optional
            Searched before the cache; default the folder that ``MODELFIX_DATA`` names.

        Returns
        -------
        dict of str to Split
            By part. Ids count through the parts in their order.

        Raises
        ------
        ModelfixError
            If the files are found nowhere and cannot be downloaded, or if one is damaged.
        """
        folder = self.find(data)
        if folder is None and not self.automatic:
            raise ModelfixError(f"{self.title} was not found; {self.how_to_get(data)}.")
        return self._read(folder or self._download(data))

    def find(self, data: Path | None = None) -> Path | None:
        """Return the folder that holds the files, searched as by `read`, or None."""
        for root in roots(data):
            for folder in self._layouts(root):
                if self._complete(folder):
                    return folder
        return None

    @property
    def automatic(self) -> bool:
        """Whether files that are not found are downloaded."""
        return self.torchvision is not None

    def how_to_get(self, data: Path | None = None) -> str:
        """Say what to fetch by hand and where to put it."""
        return f"fetch {self.wanted} and put them into {roots(data)[0] / self.name}"

    def _download(self, data: Path | None) -> Path:
        target = cache() / self._downloaded
        with explain_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
        try:
            # torchvision tries its mirrors, shows a bar and compares checksums.
            from torchvision import datasets

            print(f"downloading {self.title} into {target} ...", file=sys.stderr)
            getattr(datasets, str(self.torchvision))(root=str(scratch), download=True)
            replace_folder(scratch / self._downloaded, target)
        except (ImportError, RuntimeError, OSError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelfixError(
                f"{self.title} was not found below {' or '.join(map(str, roots(data)))} and could "
                f"not be downloaded ({first[0].rstrip(':. ')}); {self.how_to_get(data)}."
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return next(f for f in self._layouts(cache()) if self._complete(f))


def roots(data: Path | None) -> list[Path]:
    """Return the folders to search: `data` or else the one of ``MODELFIX_DATA``, then the cache."""
    own = data or (Path(value) if (value := os.environ.get(DATA_VARIABLE)) else None)
    return [cache()] if own is None else [own, cache()]


def cache() -> Path:
    """Return where downloads are kept: ``$XDG_CACHE_HOME/modelfix/data`` or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelfix" / "data"
