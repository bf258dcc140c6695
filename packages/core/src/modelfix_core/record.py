"""The record of a cell: what was run, what came out, on what, checked and stored atomically."""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelfix_core.approach import Approach, Evidence, Localisation, Outcome
from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path, write_text
from modelfix_core.model import Model

FILE = "record.json"
EVIDENCE_FOLDER = "evidence"
SUMMARY = "summary"
TRACKED = ("modelfix", "numpy", "onnx", "onnxruntime", "torch", "tensorflow", "keras", "highspy")


class Entrant(BaseModel):
    """An approach with its configuration, resolved."""

    model_config = ConfigDict(extra="forbid")

    approach: str
    abbreviation: str
    category: str
    preset: str
    config: dict[str, Any]
    version: str

    @classmethod
    def of(cls, approach: Approach, preset: str) -> "Entrant":
        """Describe `approach` as it would run now."""
        return cls(
            approach=approach.info.name,
            abbreviation=approach.info.abbreviation,
            category=approach.info.category,
            preset=preset,
            config=approach.config.model_dump(mode="json"),
            version=version_of(approach),
        )


class Record(BaseModel):
    """The result of one cell, as stored in ``record.json``."""

    model_config = ConfigDict(extra="forbid")

    cell: str
    entrant: Entrant
    # A record may be a stranger's: this names a folder.
    subject: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    repetition: int
    seed: int
    outcome: Outcome
    reason: str | None = None
    validation_accuracy: dict[str, float] = Field(default_factory=dict)
    candidates: int = 0
    best: int | None = None
    seconds: dict[str, float] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write ``record.json`` into `folder` atomically."""
        write_text(Path(folder) / FILE, self.model_dump_json(indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """Read the record of `folder`.

        Raises
        ------
        ModelfixError
            If there is none, it is damaged or cannot be read, or it is no record of ours.
        """
        path = Path(folder) / FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise ModelfixError(f"{path}: is missing; run the fix first.") from None
        except OSError as error:
            raise ModelfixError(f"{path}: cannot be read ({error.strerror}).") from error
        except (ValidationError, ValueError) as error:
            if isinstance(error, ValidationError) and error.errors()[0]["type"] != "json_invalid":
                raise ModelfixError(
                    f"{path}: is no record that this version reads ({_first_of(error)}); delete "
                    "its folder and run again if it should be."
                ) from error
            raise ModelfixError(f"{path}: is damaged; delete its folder and run again.") from error


def _first_of(error: ValidationError) -> str:
    """Return the first thing that is wrong, in words."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'content'}: {first['msg']}"


def cell_hash(entrant: Entrant, subject_hashes: Mapping[str, str], seed: int, limits: Any) -> str:
    """Return the content hash that identifies a cell: the same hash means the same result."""
    content = [entrant.model_dump(mode="json"), dict(subject_hashes), seed, limits]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """Return a short digest of option values, for names of entrants."""
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def version_of(approach: Approach) -> str:
    """Return the versions of the approach's package and of core."""
    names = [f"modelfix-{approach.info.name}", "modelfix-core"]
    versions = [f"{name} {_version(name)}" for name in names]
    return ", ".join(v for v in versions if not v.endswith(" None"))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(device: str) -> dict[str, Any]:
    """Say on what a cell was run."""
    versions = {
        d.metadata["Name"]: d.version
        for d in importlib.metadata.distributions()
        if (d.metadata["Name"] or "").split("-")[0] in TRACKED
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": device,
        "versions": dict(sorted(versions.items())),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def save_localisation(localisation: Localisation, path: Path) -> None:
    """Write the blamed parts as Parquet: kind, layer, index, score, rank (1 is most to blame)."""
    score = np.asarray(localisation.score, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    table = pa.table(
        {
            "kind": [localisation.kind] * len(score),
            "layer": [localisation.layer[i] for i in order],
            "index": np.asarray(localisation.index, dtype=np.int64)[order],
            "score": score[order],
            "rank": np.arange(1, len(score) + 1),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def save_evidence(evidence: Evidence, folder: Path) -> None:
    """Write ``evidence/<name>.parquet`` into `folder`; the summary is in the file's metadata."""
    table = pa.table({name: pa.array(column) for name, column in evidence.columns.items()})
    table = table.replace_schema_metadata({SUMMARY: evidence.summary})
    with atomic_path(Path(folder) / EVIDENCE_FOLDER / f"{evidence.name}.parquet") as temporary:
        pq.write_table(table, temporary)


def load_evidence(folder: Path) -> list[Evidence]:
    """Read all evidence of a record folder, by name.

    Raises
    ------
    ModelfixError
        If a file is damaged.
    """
    found = []
    for path in sorted((Path(folder) / EVIDENCE_FOLDER).glob("*.parquet")):
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ModelfixError(f"{path}: is damaged; delete its folder and run again.") from error
        summary = (table.schema.metadata or {}).get(SUMMARY.encode(), b"").decode()
        columns = {name: table[name].to_pylist() for name in table.column_names}
        found.append(Evidence(path.stem, summary, columns))
    return found


def check_fixed(
    folder: Path, record: Record, original: Model
) -> list[Literal["original", "fixed"]]:
    """Return which of the cell's models no longer have the hash that its record states."""
    changed: list[Literal["original", "fixed"]] = []
    if record.hashes.get("original", original.hash) != original.hash:
        changed.append("original")
    if (
        "fixed" in record.hashes
        and Model.load(folder / "fixed.onnx").hash != record.hashes["fixed"]
    ):
        changed.append("fixed")
    return changed
