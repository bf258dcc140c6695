"""Where the images of the named subjects come from: own folder, cache, download, or shipped."""

import gzip
import os
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import explain_write_errors, replace_folder

DATA_VARIABLE = "MODELFIX_DATA"
UNSIGNED_BYTE = 0x08  # the only element type of these files, third byte of the IDX magic number
MAX_BYTES = 2**31
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Source:
    """Labelled images in IDX files.

    Attributes
    ----------
    name : str
        Also the folder in which the files lie.
    title : str
    classes : tuple of str
    sizes : mapping of str to int
        Number of images of each part, ``train`` and ``test``.
    licence, homepage : str
    files : str
        Address below which the files can be fetched by hand.
    torchvision : str or None
        Class that downloads them; None for images shipped with this package.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    sizes: Mapping[str, int]
    licence: str
    homepage: str
    files: str = ""
    torchvision: str | None = None

    def read(self, data: Path | None = None) -> dict[str, Split]:
        """Find and read the images.

        Parameters
        ----------
        data : Path, optional
            Searched before the cache; default the folder that ``MODELFIX_DATA`` names.

        Returns
        -------
        dict of str to Split
            Images uint8 [N, 1, 28, 28]. Ids count through the parts: test follows train.

        Raises
        ------
        ModelfixError
            If the files are found nowhere and cannot be downloaded, or if one is damaged.
        """
        folder = self._folder(data)
        parts: dict[str, Split] = {}
        start = 0
        for part, size in self.sizes.items():
            ids = np.arange(start, start + size, dtype=np.int64)
            parts[part] = self._read_part(folder, part, ids)
            start += size
        return parts

    def _read_part(self, folder: Path, part: str, ids: np.ndarray) -> Split:
        images, labels = (_file(folder, name) for name in FILES[part])
        x, y = read_idx(images, 3), read_idx(labels, 1)
        for path, values in ((images, x), (labels, y)):
            if len(values) != len(ids):
                raise ModelfixError(
                    f"{path}: holds {len(values)} entries; {self.title} has {len(ids)} there, "
                    "fetch the file again."
                )
        if y.max() >= len(self.classes):
            raise ModelfixError(
                f"{labels}: has label {y.max()}; {self.title} has labels 0 to "
                f"{len(self.classes) - 1}, fetch the file again."
            )
        return Split(x[:, None], y.astype(np.int64), ids=ids)

    def _folder(self, data: Path | None) -> Path:
        if self.torchvision is None:
            return Path(__file__).parent / "data" / self.name
        roots = [root for root in (data or _own_data(), cache()) if root is not None]
        for root in roots:
            for folder in self._layouts(root):
                if self._complete(folder):
                    return folder
        return self._download(roots)

    def _layouts(self, root: Path) -> list[Path]:
        """Folders below `root` where the files may lie: ours, torchvision's, and both."""
        raw = Path(str(self.torchvision)) / "raw"
        return [root / self.name, root / raw, root / self.name / raw]

    def _complete(self, folder: Path) -> bool:
        return all(_file(folder, name).is_file() for part in self.sizes for name in FILES[part])

    def _download(self, searched: list[Path]) -> Path:
        target = cache() / str(self.torchvision)
        with explain_write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
        try:
            # torchvision tries its mirrors, shows a bar and compares checksums.
            from torchvision import datasets

            print(f"downloading {self.title} into {target} ...", file=sys.stderr)
            getattr(datasets, str(self.torchvision))(root=str(scratch), download=True)
            replace_folder(scratch / str(self.torchvision), target)
        except (ImportError, RuntimeError, OSError) as error:
            raise ModelfixError(self._missing(searched, error)) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target / "raw"

    def _missing(self, searched: list[Path], reason: Exception) -> str:
        names = ", ".join(f"{name}.gz" for part in self.sizes for name in FILES[part])
        first = str(reason).strip().splitlines() or [type(reason).__name__]
        return (
            f"{self.title} was not found below {' or '.join(map(str, searched))} and could not be "
            f"downloaded ({first[0].rstrip(':. ')}); fetch the files {names} from {self.files} and "
            f"put them into {searched[0] / self.name}."
        )


def _own_data() -> Path | None:
    value = os.environ.get(DATA_VARIABLE)
    return Path(value) if value else None


def cache() -> Path:
    """Return where downloads are kept: ``$XDG_CACHE_HOME/modelfix/data`` or below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modelfix" / "data"


def _file(folder: Path, name: str) -> Path:
    """Return the plain file of that name where only that exists, else the compressed one."""
    compressed, plain = folder / f"{name}.gz", folder / name
    return plain if plain.is_file() and not compressed.is_file() else compressed


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes, compressed (``.gz``) or plain.

    Parameters
    ----------
    path : Path
    dimensions : int
        3 for images, 1 for labels.

    Returns
    -------
    ndarray of uint8
        With as many axes as `dimensions`.

    Raises
    ------
    ModelfixError
        If the magic number, the sizes or the length are wrong, or the file is damaged.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            shape = _shape(header, dimensions, path)
            size = int(np.prod(shape, dtype=object))
            content = file.read(size + 1) if size <= MAX_BYTES else b""
    except (OSError, EOFError, zlib.error) as error:
        raise ModelfixError(
            f"{path}: cannot be read or is damaged ({error}); fetch the file again."
        ) from error
    if len(content) != size:
        state = "is longer than" if len(content) > size else "is cut short of"
        raise ModelfixError(
            f"{path}: {state} the {size:,} bytes that its header promises; fetch the file again."
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _shape(header: bytes, dimensions: int, path: Path) -> tuple[int, ...]:
    expected = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if header[:4] != expected:
        raise ModelfixError(
            f"{path}: starts with {header[:4].hex() or 'nothing'} instead of {expected.hex()}, so "
            f"it is no IDX file of bytes in {dimensions} dimensions; fetch the file again."
        )
    if len(header) < 4 + 4 * dimensions:
        raise ModelfixError(f"{path}: ends within its header; fetch the file again.")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in shape:
        raise ModelfixError(f"{path}: says it is empty (sizes {shape}); fetch the file again.")
    return shape


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="mnist",
            title="MNIST",
            classes=tuple("0123456789"),
            sizes={"train": 60_000, "test": 10_000},
            licence="CC BY-SA 3.0",
            homepage="http://yann.lecun.com/exdb/mnist/",
            files="https://ossci-datasets.s3.amazonaws.com/mnist/",
            torchvision="MNIST",
        ),
        Source(
            name="fashion-mnist",
            title="Fashion-MNIST",
            classes=FASHION,
            sizes={"train": 60_000, "test": 10_000},
            licence="MIT, Copyright (c) 2017 Zalando SE",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            files="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            torchvision="FashionMNIST",
        ),
        Source(
            name="fashion-mini",
            title="Fashion-MNIST (its 10,000 test images)",
            classes=FASHION,
            sizes={"test": 10_000},
            licence="MIT, Copyright (c) 2017 Zalando SE",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        ),
    )
}
