"""Images that stay files: an array that decodes them when they are asked for."""

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path

if TYPE_CHECKING:  # imported where it is needed: few data sets stay files
    import pyarrow as pa

INDEX_FILE = "x.arrow"
FORMAT = b"modelfix"  # key of the index file's metadata


class ImageFiles:
    """Image files as an array [N, 3, H, W] of uint8 that is never held as a whole.

    An image is decoded when it is indexed, several at a time in threads: its shorter side is
    brought to `resize` pixels and the middle is cut out, as is usual for ImageNet.

    Parameters
    ----------
    root : Path
        The files lie below it.
    paths : pyarrow.Array of string, [N]
        Relative to `root`.
    sizes : ndarray of int64, [N]
        Bytes of each file; one that has another size now is refused.
    side : int
        Height and width of the images.
    resize : int
        Length of the shorter side before the middle is cut out, at least `side`.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, root: Path, paths: "pa.Array", sizes: np.ndarray, side: int, resize: int
    ) -> None:
        self.root, self.paths, self.sizes = Path(root), paths, sizes
        self.side, self.resize = side, resize

    @classmethod
    def of(cls, root: Path, paths: Sequence[str], side: int, resize: int) -> "ImageFiles":
        """Take the files as they lie there now.

        Raises
        ------
        ModelfixError
            If one is missing.
        """
        import pyarrow as pa

        try:
            found = ((root / path).stat().st_size for path in paths)
            sizes = np.fromiter(found, np.int64, len(paths))
        except OSError as error:
            raise ModelfixError(f"{error.filename}: cannot be read ({error.strerror}).") from error
        return cls(root, pa.array(paths, pa.string()), sizes, side, resize)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height and width."""
        return (len(self), 3, self.side, self.side)

    @property
    def nbytes(self) -> int:
        """Bytes that all images take when they are decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __getitem__(self, index: Any) -> np.ndarray:
        """Decode one image (an integer), a slice, positions or a boolean mask."""
        if isinstance(index, int | np.integer):
            return self._decoded(np.arange(len(self))[index : index + 1 or None])[0]
        return self._decoded(np.arange(len(self))[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        x = self[:]
        return x if dtype is None else x.astype(dtype, copy=False)

    def select(self, index: Any) -> "ImageFiles":
        """Return the images at `index` (a slice, positions or a mask) without decoding them."""
        import pyarrow as pa

        rows = np.arange(len(self))[index]
        return ImageFiles(
            self.root, self.paths.take(pa.array(rows)), self.sizes[rows], self.side, self.resize
        )

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        x = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(position: int) -> None:
            x[position] = self._decode(int(rows[position]))

        # Reading the results raises the first error.
        list(_threads().map(fill, range(len(rows))))
        return x

    def _decode(self, row: int) -> np.ndarray:
        path = self.root / self.paths[row].as_py()
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelfixError(
                f"{path}: cannot be read ({error.strerror}); put the file back or prepare the "
                "subject again."
            ) from error
        if len(content) != self.sizes[row]:
            raise ModelfixError(
                f"{path}: has {len(content):,} bytes where {self.sizes[row]:,} were found before; "
                "put the original file back or prepare the subject again."
            )
        return decode(content, path, self.side, self.resize)

    def save(self, path: Path) -> None:
        """Write the index of the files (not the images) atomically."""
        import pyarrow as pa

        card = {"root": str(self.root), "side": self.side, "resize": self.resize}
        table = pa.table({"path": self.paths, "bytes": self.sizes})
        table = table.replace_schema_metadata({FORMAT: json.dumps(card)})
        with (
            atomic_path(path) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table.combine_chunks())

    @classmethod
    def load(cls, path: Path) -> "ImageFiles":
        """Memory-map the index that `save` wrote."""
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            card = json.loads(table.schema.metadata[FORMAT])
            paths = table["path"].combine_chunks()
            sizes = table["bytes"].to_numpy()
            return cls(Path(card["root"]), paths, sizes, card["side"], card["resize"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ModelfixError(
                f"{path}: is not a readable index of images; prepare the subject again."
            ) from error


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")


def decode(content: bytes, path: Path, side: int, resize: int) -> np.ndarray:
    """Decode an image file to uint8 [3, side, side].

    Parameters
    ----------
    content : bytes
        Of the file.
    path : Path
        For the error.
    side, resize : int
        The shorter side is brought to `resize` (bilinear, antialiased), then the middle is cut out.

    Raises
    ------
    ModelfixError
        If the file is no readable image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ModelfixError(f"{path}: is not a readable image; fetch the file again.") from error
    width, height = image.size
    short = min(width, height)
    wide, high = (int(resize * length / short) for length in (width, height))
    left, top = round((wide - side) / 2), round((high - side) / 2)
    small = image.resize((wide, high), Image.Resampling.BILINEAR)
    cut = small.crop((left, top, left + side, top + side))
    return np.asarray(cut).transpose(2, 0, 1)
