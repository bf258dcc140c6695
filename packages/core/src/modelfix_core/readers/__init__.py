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

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelfix_core.errors import ModelfixError
from modelfix_core.readers.arrays import npy, npz
from modelfix_core.readers.columns import GROUP
from modelfix_core.readers.encoded import class_folders, labelled_folder
from modelfix_core.readers.listing import Listing
from modelfix_core.readers.parquet import parquet

__all__ = ["GROUP", "Listing", "find"]

KINDS = (
    "a folder with a sub-folder of images per class, a folder of images with --labels, an NPZ or "
    "NPY file, or Parquet"
)


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
            return parquet
        return class_folders if labels is None else labelled_folder
    readers = {".npz": npz, ".npy": npy, ".parquet": parquet}
    if suffix not in readers:
        raise ModelfixError(f"{path}: is of no kind that can be read; give {KINDS}.")
    if labels is not None and suffix != ".npy":
        raise ModelfixError(f"{path}: holds its own labels; leave --labels out.")
    return readers[suffix]
