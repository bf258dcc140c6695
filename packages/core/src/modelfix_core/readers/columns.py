"""Labels, groups and splits from the columns of a file."""

import csv
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelfix_core.dataset import SPLITS
from modelfix_core.errors import ModelfixError
from modelfix_core.readers.listing import Images, Listing

SPLIT_NAMES = {
    **{name: name for name in SPLITS},
    **{"training": "train", "val": "validation", "valid": "validation", "testing": "test"},
}
GROUP = "group"
UNREADABLE: tuple[type[Exception], ...] = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,  # of a plain array, which is no context manager
    zipfile.BadZipFile,
    SyntaxError,  # of a header that is no literal
    tokenize.TokenError,
    zlib.error,
)


def read_csv(path: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Read a CSV file with a header as columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelfixError(
            f"{path}: is no readable CSV file of labels ({reason}); give one with the columns "
            f"{', '.join(needed)}."
        ) from error
    columns = list(rows[0]) if rows else []
    for name in needed:
        if name not in columns:
            raise no_column(str(path), name, [str(column) for column in columns])
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ModelfixError(
                f"{path}: line {line} has another number of values than the header; repair it."
            )
    return {name: [row[name].strip() for row in rows] for name in columns}


def no_column(source: str, name: str, columns: Iterable[str]) -> ModelfixError:
    """Return the error of a column that is asked for and not there."""
    return ModelfixError(
        f"{source}: has no column {name!r}; its columns are {', '.join(columns) or 'none'}."
    )


def from_columns(
    images: Images,
    table: dict[str, Any],
    group_column: str | None,
    classes: Sequence[str] | None,
    source: str,
) -> Listing:
    """Return the listing of `images` with the labels, groups and splits of `table`."""
    y, names = numbered(table["label"], classes, source)
    if group_column and group_column not in table:
        raise no_column(source, group_column, table)
    group, values = _groups(table.get(group_column or GROUP), source)
    for what, column in table.items():
        if len(column) != len(y):
            raise ModelfixError(
                f"{source}: {what} has {len(column)} entries but there are {len(y)} labels; give "
                "one per image."
            )
    split = None if "split" not in table else _splits(table["split"], source)
    return Listing(images, y, names, group, values, split)


def numbered(
    labels: Sequence[Any], classes: Sequence[str] | None, source: str
) -> tuple[np.ndarray, list[str]]:
    """Return labels as positions in the class names, and these names."""
    numbers = _as_numbers(labels, source)
    if numbers is not None and (classes is None or not set(map(str, labels)) <= set(classes)):
        names = list(classes or map(str, range(int(numbers.max(initial=0)) + 1)))
        for bad in numbers[(numbers < 0) | (numbers >= len(names))]:
            raise ModelfixError(
                f"{source}: has label {bad}; labels must lie in 0 to {len(names) - 1}."
            )
        return numbers, names
    texts = [str(label) for label in labels]
    known = list(classes) if classes else sorted(set(texts))
    position = {name: number for number, name in enumerate(known)}
    for text in texts:
        if text not in position:
            raise ModelfixError(
                f"{source}: has the label {text!r}; the classes are {', '.join(known)}."
            )
    return np.array([position[text] for text in texts], np.int64), known


def _as_numbers(labels: Sequence[Any], source: str) -> np.ndarray | None:
    """Return labels that are integers, or texts of integers, as int64; None for names."""
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iuUO":
        raise ModelfixError(
            f"{source}: labels are {array.dtype} of shape {list(array.shape)}; expected one "
            "integer from 0 or class name per image."
        )
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if any(label is None or label == "" for label in labels):
        raise ModelfixError(f"{source}: some images have no label; give one per image.")
    try:
        return np.array([int(label) for label in labels], np.int64)
    except (ValueError, TypeError):
        return None


def _groups(column: Any, source: str) -> tuple[np.ndarray | None, list[str] | None]:
    if column is None:
        return None, None
    if any(value is None or value == "" or value != value for value in column):
        raise ModelfixError(f"{source}: some images have no group; give one per image.")
    values, positions = np.unique(np.asarray(column), return_inverse=True)
    return positions.astype(np.int64), [str(value) for value in values]


def _splits(column: Any, source: str) -> np.ndarray:
    for name in column:
        if str(name) not in SPLIT_NAMES:
            raise ModelfixError(
                f"{source}: has the split {str(name)!r}; splits are called {', '.join(SPLITS)}."
            )
    return np.array([SPLIT_NAMES[str(name)] for name in column])


@contextmanager
def explained(path: Path, what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what readers raise into one sentence: `path` is not `what`."""
    try:
        yield
    except ModelfixError:
        raise
    except (*UNREADABLE, *more) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelfixError(f"{path}: is not {what} ({reason}).") from error
