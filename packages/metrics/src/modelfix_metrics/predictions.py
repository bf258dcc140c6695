"""The stored predictions of a cell, from which every metric but the attacks' is computed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path
from modelfix_core.model import Model

from modelfix_metrics.decisions import predicted

FILE = "predictions.parquet"
FORMAT = "1"
COLUMNS = ("id", "label", "group", "logits_before", "logits_after")


def inputs_hash(ids: np.ndarray, y: np.ndarray) -> str:
    """Return the SHA-256 of sample ids and labels, [N] each: it identifies inputs and order."""
    arrays = (np.ascontiguousarray(a, dtype="<i8").tobytes() for a in (ids, y))
    return hashlib.sha256(b"".join(arrays)).hexdigest()


@dataclass(frozen=True)
class Predictions:
    """Logits of the original and of the fixed model on the same inputs.

    Attributes
    ----------
    ids, y : ndarray of int64, [N]
        Sample ids and labels.
    group : ndarray of int64, [N], or None
        Sensitive attribute.
    before, after : ndarray of float32, [N, K]
        Logits of the original and of the fixed model.
    original, fixed : str
        Hashes of the models.
    split : str
    classes : sequence of str
        Class names, where known.
    """

    ids: np.ndarray
    y: np.ndarray
    group: np.ndarray | None
    before: np.ndarray
    after: np.ndarray
    original: str = ""
    fixed: str = ""
    split: str = "test"
    classes: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        original: Model,
        fixed: Model,
        data: Split,
        *,
        split: str = "test",
        classes: Sequence[str] = (),
    ) -> "Predictions":
        """Run both models over `data`.

        Raises
        ------
        ModelfixError
            If there are no images or the models do not fit them, each other or `classes`.
        """
        if len(data) == 0:
            raise ModelfixError(f"the {split} split is empty; it needs at least one image.")
        known = len(classes) or original.num_classes
        for model in (original, fixed):
            if model.num_classes != known:
                raise ModelfixError(
                    f"{model.name}: predicts {model.num_classes} classes where {known} are "
                    "expected; evaluate the models on the data they were made for."
                )
        return cls(
            ids=np.asarray(data.ids, dtype=np.int64),
            y=np.asarray(data.y, dtype=np.int64),
            group=None if data.group is None else np.asarray(data.group, dtype=np.int64),
            before=original.predict(data),
            after=fixed.predict(data),
            original=original.hash,
            fixed=fixed.hash,
            split=split,
            classes=tuple(classes),
        )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def inputs(self) -> str:
        """Hash of sample ids and labels."""
        return inputs_hash(self.ids, self.y)

    @property
    def right_before(self) -> np.ndarray:
        """Which inputs the original model gets right, [N] of bool."""
        return predicted(self.before) == self.y

    @property
    def right_after(self) -> np.ndarray:
        """Which inputs the fixed model gets right, [N] of bool."""
        return predicted(self.after) == self.y

    def require_same_inputs(self, inputs: str, what: str) -> None:
        """Refuse predictions on other inputs, or in another order, than those with hash `inputs`.

        Parameters
        ----------
        inputs : str
            From `inputs_hash`.
        what : str
            Where the other inputs come from, for the error.
        """
        if self.inputs != inputs:
            raise ModelfixError(
                f"the stored predictions and {what} are about different inputs (sample ids or "
                "labels differ, or their order); evaluate both on the same split."
            )

    # -- files ---------------------------------------------------------------------------------

    def to_table(self) -> pa.Table:
        """Return the columns of `COLUMNS` with hashes, split and classes as metadata."""
        columns = {
            "id": pa.array(self.ids, pa.int64()),
            "label": pa.array(self.y, pa.int64()),
            "group": pa.nulls(len(self), pa.int64())
            if self.group is None
            else pa.array(self.group, pa.int64()),
            "logits_before": _rows(self.before),
            "logits_after": _rows(self.after),
        }
        metadata = {
            "modelfix.format": FORMAT,
            "modelfix.split": self.split,
            "modelfix.inputs": self.inputs,
            "modelfix.original": self.original,
            "modelfix.fixed": self.fixed,
            "modelfix.classes": json.dumps(list(self.classes)),
        }
        return pa.table(columns).replace_schema_metadata(metadata)

    @classmethod
    def from_table(cls, table: pa.Table, name: str = "predictions") -> "Predictions":
        """Read what `to_table` gave; `name` is how errors call it.

        Raises
        ------
        ModelfixError
            If columns or metadata are missing, groups are given for some inputs only, or the
            inputs are not those of the stored hash.
        """
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        missing = [c for c in COLUMNS if c not in table.column_names]
        if missing or metadata.get("modelfix.format") != FORMAT:
            raise ModelfixError(
                f"{name}: is not a table of predictions of format {FORMAT} with the columns "
                f"{', '.join(COLUMNS)}; evaluate the record again."
            )
        group = table["group"]
        if 0 < group.null_count < len(table):
            raise ModelfixError(
                f"{name}: {group.null_count} of {len(table)} inputs have no group; give a group to "
                "all inputs or to none."
            )
        predictions = cls(
            ids=table["id"].to_numpy(),
            y=table["label"].to_numpy(),
            group=None if group.null_count == len(table) else group.to_numpy(),
            before=_matrix(table["logits_before"]),
            after=_matrix(table["logits_after"]),
            original=metadata["modelfix.original"],
            fixed=metadata["modelfix.fixed"],
            split=metadata["modelfix.split"],
            classes=tuple(json.loads(metadata["modelfix.classes"])),
        )
        predictions.require_same_inputs(metadata["modelfix.inputs"], f"the hash inside {name}")
        return predictions

    def save(self, path: str | Path) -> None:
        """Write the table as Parquet, atomically."""
        with atomic_path(Path(path)) as temporary:
            pq.write_table(self.to_table(), temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Read a file that `save` wrote; errors name it."""
        path = Path(path)
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise ModelfixError(f"{path}: is missing; evaluate the record first.") from None
        except (pa.ArrowInvalid, OSError) as error:
            raise ModelfixError(
                f"{path}: is not a readable Parquet file; evaluate the record again."
            ) from error
        return cls.from_table(table, str(path))


def _rows(logits: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(logits, dtype=np.float32).reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, logits.shape[1])


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    width = column.type.list_size
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width)
