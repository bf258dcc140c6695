"""CIFAR10 in either of its formats; the Python one is read without unpickling anything foreign."""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.subjects.sources.base import Source

PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
BATCHES = 5  # of the training images
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28
Batch = tuple[np.ndarray, np.ndarray]  # images [n, 3, 32, 32] and labels [n], uint8


@dataclass(frozen=True, kw_only=True)
class CifarSource(Source):
    """CIFAR10, in five batches of training images and one of test images."""

    shape: tuple[int, int, int] = (3, 32, 32)

    @property
    def wanted(self) -> str:
        """The archive and its address."""
        return (
            f"cifar-10-python.tar.gz (or cifar-10-binary.tar.gz) from {self.homepage}, unpack the "
            "batches"
        )

    @property
    def _downloaded(self) -> str:
        return PYTHON

    def _layouts(self, root: Path) -> list[Path]:
        inner = [Path(PYTHON), Path(BINARY)]
        return [
            root / self.name,
            *(root / i for i in inner),
            *(root / self.name / i for i in inner),
        ]

    def _complete(self, folder: Path) -> bool:
        return _suffix(folder) is not None

    def _read(self, folder: Path) -> dict[str, Split]:
        suffix = _suffix(folder) or ""
        read = read_binary if suffix else read_pickled
        parts: dict[str, Split] = {}
        start = 0
        for part, names in _NAMES.items():
            size = self.sizes[part]
            batches = [
                self._batch(folder / f"{n}{suffix}", size // len(names), read) for n in names
            ]
            x, y = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
            parts[part] = Split(x, y.astype(np.int64), ids=np.arange(start, start + size))
            start += size
        return parts

    def _batch(self, path: Path, size: int, read: Callable[[Path], Batch]) -> Batch:
        x, y = read(path)
        if len(x) != size:
            raise ModelfixError(
                f"{path}: holds {len(x)} images; {self.title} has {size} there, fetch it again."
            )
        if y.max(initial=0) >= len(self.classes):
            raise ModelfixError(
                f"{path}: has label {y.max()}; {self.title} has labels 0 to "
                f"{len(self.classes) - 1}, fetch it again."
            )
        return x, y


_NAMES = {
    "train": [f"data_batch_{number}" for number in range(1, BATCHES + 1)],
    "test": ["test_batch"],
}


def _suffix(folder: Path) -> str | None:
    """Return what follows the names of the batches that lie complete in `folder`."""
    names = [name for part in _NAMES.values() for name in part]
    for suffix in ("", ".bin"):
        if all((folder / f"{name}{suffix}").is_file() for name in names):
            return suffix
    return None


def read_binary(path: Path) -> Batch:
    """Read a batch of the binary version: per image a label and 3 x 32 x 32 bytes.

    Raises
    ------
    ModelfixError
        If the length is no multiple of an image's.
    """
    content = _content(path)
    if not content or len(content) % (1 + PIXELS):
        raise ModelfixError(
            f"{path}: has {len(content):,} bytes, which is no multiple of an image's "
            f"{1 + PIXELS:,}: it is cut short or no batch of CIFAR10; fetch it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def read_pickled(path: Path) -> Batch:
    """Read a batch of the Python version without running any code that it names.

    Raises
    ------
    ModelfixError
        If it is cut short, names anything but a NumPy array, or is no batch.
    """
    content = _content(path)
    try:
        batch = _Restricted(io.BytesIO(content), encoding="bytes").load()
    except _Foreign as error:
        raise ModelfixError(
            f"{path}: refers to {error}; a batch of CIFAR10 holds numbers alone, so this file is "
            "not read."
        ) from error
    # A damaged pickle can fail in any way that its opcodes can.
    except Exception as error:
        raise ModelfixError(
            f"{path}: is cut short or no batch of CIFAR10 ({_first(error)}); fetch it again."
        ) from error
    try:
        y = np.array(batch[b"labels"], dtype=np.uint8)
        x = batch[b"data"].array()
    except Exception as error:
        raise ModelfixError(
            f"{path}: holds no labels and images of CIFAR10 ({_first(error)}); fetch it again."
        ) from error
    if x.ndim != 2 or x.shape != (len(y), PIXELS):
        raise ModelfixError(
            f"{path}: holds images of shape {list(x.shape)} and {len(y)} labels; expected "
            f"{len(y)} x {PIXELS}, fetch it again."
        )
    return x.reshape(-1, 3, 32, 32), y


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelfixError(f"{path}: is larger than any batch of CIFAR10; fetch it again.")
        return path.read_bytes()
    except OSError as error:
        raise ModelfixError(f"{path}: cannot be read ({error.strerror}).") from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Foreign(Exception):
    """A pickle names something that a batch does not need."""


class _Array:
    """Stands for a pickled NumPy array: keeps its state and runs nothing."""

    state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _version, shape, kind, by_column, content = self.state
        if not isinstance(kind, _Kind) or kind.name not in ("u1", b"u1"):
            raise ValueError("the images are no bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_column else "C")


class _Kind:
    """Stands for a pickled NumPy element type."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple) -> None:
        pass


class _Type:
    """Stands for the class of NumPy arrays, which a pickled array names."""


_NEEDED = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Kind,
}


class _Restricted(pickle.Unpickler):
    """Unpickles numbers, text, lists and dicts, and NumPy arrays as what stands for them."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for the named thing, or refuse it."""
        try:
            return _NEEDED[module, name]
        except KeyError:
            raise _Foreign(f"{module}.{name}") from None
