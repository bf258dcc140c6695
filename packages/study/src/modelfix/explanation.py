"""What a record can tell about its fix: the blamed parts, what changed, the approach's evidence."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from modelfix_core.approach import Evidence, Localisation
from modelfix_core.errors import ModelfixError
from modelfix_core.job import JOB_FILE, Job
from modelfix_core.model import Layer, Model
from modelfix_core.record import Record, load_evidence
from modelfix_core.subject import Subject

FIXED_FILE = "fixed.onnx"
LOCALISATION_FILE = "localisation.parquet"


@dataclass(frozen=True)
class LayerChange:
    """How much a layer's weight and bias changed.

    Attributes
    ----------
    layer : str
    kind : str
    weights, changed : int
        Number of values, and of those that differ.
    relative : float
        Norm of the change over that of the original values.
    largest : float
        Largest absolute change of one value.
    """

    layer: str
    kind: str
    weights: int
    changed: int
    relative: float
    largest: float


@dataclass(frozen=True)
class Blamed:
    """One blamed part with its values before and after, where it is a single weight."""

    rank: int
    layer: str
    index: str
    score: float
    before: float | None = None
    after: float | None = None


class Explanation:
    """A record folder read for a person.

    Parameters
    ----------
    folder : Path
        Record folder of a cell.

    Raises
    ------
    ModelfixError
        If record or subject are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.record = Record.load(self.folder)
        self.subject = Subject.load(subject_folder(self.folder, self.record))
        self.original = self.subject.model
        expected = self.record.hashes.get("original", self.original.hash)
        if self.original.hash != expected:
            raise ModelfixError(
                f"{self.folder}: was made from another original model than the one in "
                f"{self.subject.folder}; run the fix again."
            )
        path = self.folder / FIXED_FILE
        self.fixed = Model.load(path) if path.exists() else None
        self.localisation = _localisation(self.folder / LOCALISATION_FILE)
        self.evidence: list[Evidence] = load_evidence(self.folder)

    @cached_property
    def changes(self) -> list[LayerChange]:
        """The layers of the original model whose values differ in the fixed one, in graph order."""
        found = (self._change(layer) for layer in self.original.layers()) if self.fixed else ()
        return [change for change in found if change is not None]

    @property
    def new_nodes(self) -> int:
        """How many nodes the graph of the fixed model has beyond the original's."""
        if self.fixed is None:
            return 0
        return len(self.fixed.proto().graph.node) - len(self.original.proto().graph.node)

    def blamed(self, most: int) -> list[Blamed]:
        """Return the `most` blamed parts, the first to blame first."""
        if self.localisation is None:
            return []
        blame = self.localisation
        rows = zip(blame.layer[:most], blame.index[:most], blame.score[:most], strict=True)
        return [
            self._part(rank, layer, int(index), float(score))
            for rank, (layer, index, score) in enumerate(rows, start=1)
        ]

    def delta(self, layer: Layer) -> np.ndarray | None:
        """Return the change of a layer's weight; None where the fixed model has no such weight."""
        before = self.original.weights[layer.weight]
        after = None if self.fixed is None else self.fixed.weights.get(layer.weight)
        return None if after is None or after.shape != before.shape else after - before

    def _change(self, layer: Layer) -> LayerChange | None:
        assert self.fixed is not None
        names = [*layer.parameters, *layer.statistics]
        if any(name not in self.fixed.weights for name in names):
            return None
        before = np.concatenate([self.original.weights[name].ravel() for name in names])
        after = np.concatenate([self.fixed.weights[name].ravel() for name in names])
        moved = after - before
        if not moved.any():
            return None
        return LayerChange(
            layer=layer.name,
            kind=layer.kind,
            weights=before.size,
            changed=int(np.count_nonzero(moved)),
            relative=float(np.linalg.norm(moved) / (np.linalg.norm(before) or 1.0)),
            largest=float(np.abs(moved).max()),
        )

    def _part(self, rank: int, name: str, index: int, score: float) -> Blamed:
        assert self.localisation is not None
        layer = self.original.layer(name)
        weight = self.original.weights[layer.weight]
        if self.localisation.kind != "weight":
            return Blamed(
                rank, name, "" if self.localisation.kind == "layer" else f"{index}", score
            )
        place = np.unravel_index(index, weight.shape)
        after = None if self.fixed is None else self.fixed.weights.get(layer.weight)
        return Blamed(
            rank,
            name,
            ", ".join(str(int(p)) for p in place),
            score,
            float(weight[place]),
            None if after is None or after.shape != weight.shape else float(after[place]),
        )

    def as_dict(self, most: int) -> dict[str, Any]:
        """Return plain JSON values; of localisation and evidence at most `most` rows."""
        return {
            "record": str(self.folder),
            "approach": self.record.entrant.approach,
            "subject": self.record.subject,
            "outcome": self.record.outcome,
            "reason": self.record.reason,
            "kind": None if self.localisation is None else self.localisation.kind,
            "blamed": [vars(part) for part in self.blamed(most)],
            "changed": [vars(change) for change in self.changes],
            "new_nodes": self.new_nodes,
            "evidence": [
                {"name": e.name, "summary": e.summary, "rows": rows_of(e, most)}
                for e in self.evidence
            ],
        }


def subject_folder(folder: Path, record: Record) -> Path:
    """Return the subject of the record's job, or that of the home in which the record lies now."""
    folder = Path(folder).absolute()
    job = folder / JOB_FILE
    # What was made from another record, such as by post-processing, has no job of its own.
    named = Job.load(job).subject if job.exists() else None
    if named is not None and (named.exists() or len(folder.parents) < 4):
        return named
    if len(folder.parents) < 4:
        raise ModelfixError(
            f"{folder}: does not lie in HOME/runs/SUBJECT/ENTRANT/N, so its subject is unknown; "
            "give a record that does."
        )
    return folder.parents[3] / "subjects" / record.subject


def rows_of(evidence: Evidence, most: int | None = None) -> list[dict[str, Any]]:
    """Return the first rows of an evidence table, a dict each."""
    columns = {name: list(column)[:most] for name, column in evidence.columns.items()}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _localisation(path: Path) -> Localisation | None:
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        columns = {name: table[name] for name in ("kind", "layer", "index", "score")}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ModelfixError(f"{path}: is damaged; delete its folder and run again.") from error
    kinds = columns["kind"].to_pylist()
    return Localisation(
        kinds[0] if kinds else "weight",
        columns["layer"].to_pylist(),
        columns["index"].to_numpy(),
        columns["score"].to_numpy(),
    )


def positions(ids: np.ndarray, wanted: Iterable[int]) -> list[int | None]:
    """Return where each wanted sample id stands in `ids`; None for those that are not there."""
    place = {int(sample): position for position, sample in enumerate(ids)}
    return [place.get(int(sample)) for sample in wanted]
