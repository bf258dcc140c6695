# environment: modelfix
"""The HTML report over 16 entrants x 5 subjects x 3 repetitions with 10,000 predictions each.

The benchmark makes the records itself: prepared subjects of small random images, predictions of
stand-in models as the evaluation stores them, and the metrics of these predictions. Measured is the
whole command in a process of its own on two cores: records, predictions, pictures, statistics and
the file. The ratio is that of the limit (60 s) to the processor time it took; the time on the
clock, which depends on what else runs, is printed beside it.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from modelfix.catalogue import Catalogue
from modelfix_core import Split
from modelfix_core.approach import Outcome
from modelfix_core.record import Entrant, Record
from modelfix_core.subject import Subject
from modelfix_metrics.attacks import AttackOptions
from modelfix_metrics.evaluation import evaluate
from modelfix_metrics.predictions import FILE as PREDICTIONS
from modelfix_metrics.predictions import inputs_hash
from modelfix_metrics.value import MetricValue
from modelfix_testing import tiny_subject

CLASSES, CANDIDATES, ATTACKED = 10, 20, 1000
MOST_SECONDS, MOST_MEMORY = 60.0, 2 * 2**30


class StandIn:
    """Predicts what it was told to, as a model does."""

    num_classes = CLASSES

    def __init__(self, name: str, labels: np.ndarray, rng: np.random.Generator) -> None:
        self.name = self.hash = name
        self.logits = rng.normal(size=(len(labels), CLASSES)).astype(np.float32)
        self.logits[np.arange(len(labels)), labels] += 10

    def predict(self, data: Split) -> np.ndarray:
        """Return the logits, [N, 10]."""
        return self.logits


def flipped(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return labels of which a share is another class."""
    moved = (labels + rng.integers(1, CLASSES, len(labels))) % CLASSES
    return np.where(rng.random(len(labels)) < share, moved, labels)


def prepare(folder: Path, name: str, inputs: int, rng: np.random.Generator) -> Subject:
    """Make a subject whose test split holds so many coloured images."""
    made = tiny_subject(folder / name)
    target = folder / "subjects" / name
    target.parent.mkdir(exist_ok=True)
    made.folder.rename(target)
    coarse = rng.integers(0, 256, (inputs, 3, 8, 8), dtype=np.uint8)
    images = coarse.repeat(4, axis=2).repeat(4, axis=3)
    labels = rng.integers(0, CLASSES, inputs)
    Split(images, labels, ids=np.arange(inputs)).save(target / "test")
    made.card.model_copy(update={"name": name}).save(target)
    return Subject.load(target)


def cell(folder: Path, entrant: Entrant, subject: Subject, original: StandIn, r: int) -> None:
    """Write the record of a cell, with predictions and candidates."""
    seed = [len(folder.parts), r, *map(ord, entrant.approach + subject.card.name)]
    rng = np.random.default_rng(seed)
    test = subject.dataset(("test",))["test"]
    said = original.logits.argmax(axis=1)
    repaired = (said != test.y) & (rng.random(len(test)) < rng.uniform(0, 0.5))
    mended = np.where(repaired, test.y, said)
    said = np.where(rng.random(len(test)) < 0.02, flipped(test.y, 1, rng), mended)
    fixed = StandIn(f"{entrant.approach}-{r}", said, rng)
    found = evaluate(
        original, fixed, test, classes=subject.card.classes, epsilon=None, order_seed=r,
        attack=AttackOptions(metrics=()),
    )  # fmt: skip
    evaluation = found.as_dict() | {"hashes": {"fixed": fixed.hash, "inputs": ""}}
    evaluation["hashes"]["inputs"] = inputs_hash(test.ids, test.y)
    asr = MetricValue.ratio("asr", int(rng.integers(600, 900)), ATTACKED, "test").as_dict()
    evaluation["metrics"]["asr"] = asr
    evaluation["comparisons"]["asr"] = {"before": 0.8}
    folder.mkdir(parents=True)
    found.predictions.save(folder / PREDICTIONS)
    steps = [
        {"step": step, "validation_accuracy": float(rng.uniform(0.8, 0.9)), "seconds": 1.5 * step}
        for step in range(CANDIDATES)
    ]
    (folder / "candidates.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    Record(
        cell=f"{entrant.approach}/{subject.card.name}/{r}",
        entrant=entrant,
        subject=subject.card.name,
        repetition=r,
        seed=r,
        outcome=Outcome.FIXED,
        validation_accuracy={"before": 0.85, "after": 0.9},
        candidates=CANDIDATES,
        seconds={"fixing": float(rng.uniform(1, 1000))},
        hashes={"original": original.hash, "fixed": fixed.hash},
        evaluation=evaluation,
    ).save(folder)


def make(home: Path, subjects: int, repetitions: int, inputs: int) -> int:
    """Write all records and return their number."""
    rng = np.random.default_rng(0)
    prepared = [prepare(home, f"subject-{s}", inputs, rng) for s in range(subjects)]
    originals = [
        StandIn("original", flipped(s.dataset(("test",))["test"].y, 0.1, rng), rng)
        for s in prepared
    ]
    infos = Catalogue().infos.values()
    for info, (subject, original), r in itertools.product(
        infos, zip(prepared, originals, strict=True), range(1, repetitions + 1)
    ):
        entrant = Entrant(
            approach=info.name, abbreviation=info.abbreviation, category=info.category,
            preset="default", config={}, version="0.1.0",
        )  # fmt: skip
        folder = home / "runs" / subject.card.name / info.name / str(r)
        cell(folder, entrant, subject, original, r)
    return len(infos) * subjects * repetitions


def main(arguments: list[str] | None = None) -> list[dict]:
    """Make the records, write the report and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write JSON lines to this file")
    parser.add_argument("--subjects", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        records = make(home, options.subjects, options.repetitions, options.inputs)
        path = options.keep or home / "report.html"
        command = [sys.executable, "-m", "modelfix", "study", "report", "--html", str(path)]
        started = perf_counter()
        subprocess.run([*command, "--home", str(home)], check=True, stdout=subprocess.DEVNULL)
        seconds = perf_counter() - started
        size = path.stat().st_size
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert cpu < MOST_SECONDS, f"{cpu:.0f} s of processor time"
    assert memory < MOST_MEMORY, f"{memory / 2**20:.0f} MiB"
    print(
        f"report: ratio {MOST_SECONDS / cpu:.1f} x (limit {MOST_SECONDS:.0f} s, ours {cpu:.1f} s "
        f"of processor time, {seconds:.1f} s on the clock) for {records} records of "
        f"{options.inputs} predictions; {memory / 2**20:.0f} MiB, file {size / 2**20:.1f} MiB"
    )
    result = {
        "name": "report", "ratio": MOST_SECONDS / cpu, "baseline_seconds": MOST_SECONDS,
        "ours_seconds": cpu, "clock_seconds": seconds, "memory": memory, "bytes": size,
        "records": records,
    }  # fmt: skip
    if options.json is not None:
        options.json.write_text(json.dumps(result) + "\n")
    return [result]


if __name__ == "__main__":
    main()
