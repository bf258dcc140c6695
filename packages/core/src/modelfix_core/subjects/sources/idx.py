"""Images in IDX files, as those of MNIST."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.subjects.sources.base import Source

UNSIGNED_BYTE = 0x08  # the only element type of these files, third byte of the IDX magic number
MAX_BYTES = 2**31
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@dataclass(frozen=True, kw_only=True)
class IdxSource(Source):
    """Grey images of 28 x 28 in IDX files, compressed or plain.

    Attributes
    ----------
    files : str
        Address below which the files can be fetched by hand.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    files: str = ""

    @property
    def wanted(self) -> str:
        """The names of the files and their address."""
        names = ", ".join(f"{name}.gz" for part in self.sizes for name in FILES[part])
        return f"the files {names} from {self.files}"

    def find(self, data: Path | None = None) -> Path | None:
        """Return the folder that holds the files, or None."""
        if self.shipped:
            return Path(__file__).parents[1] / "data" / self.name
        return super().find(data)

    def _layouts(self, root: Path) -> list[Path]:
        """Ours, torchvision's, and both."""
        raw = Path(self._downloaded) / "raw"
        return [root / self.name, root / raw, root / self.name / raw]

    def _complete(self, folder: Path) -> bool:
        return all(_file(folder, name).is_file() for part in self.sizes for name in FILES[part])

    def _read(self, folder: Path) -> dict[str, Split]:
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
