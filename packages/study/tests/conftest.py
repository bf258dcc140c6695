"""Records of a stand-in approach on the tiny subject, evaluated without the attack."""

import json
import subprocess
import sysconfig
import venv

import numpy as np
import pytest
import yaml
from modelfix.environments import clean_environ
from modelfix_core import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Evidence,
    Framework,
    Localisation,
    Need,
    Unadaptable,
)
from modelfix_core import job as job_module
from modelfix_core.job import Job, run_job
from modelfix_core.subject import file_hash
from modelfix_metrics.attacks import AttackOptions
from modelfix_metrics.cell import evaluate_record
from modelfix_testing import tiny_subject


class Shift(Approach):
    """Moves one weight of the last layer: enough to break and repair some inputs."""

    info = ApproachInfo(
        name="arachne",  # a known name, so that it stands beside the published study
        abbreviation="AR",
        title="Shift",
        category=Category.NEURON,
        framework=Framework.NONE,
        paper="none",
        summary="Moves a weight.",
        needs=frozenset({Need.REPAIR}),
        localises=True,
    )

    class Config(ApproachConfig):
        size: float = 0.3
        kind: str = "weight"
        unadaptable: bool = False

    def check(self, task):
        if self.config.unadaptable:
            raise Unadaptable("it has no square layer")

    def candidates(self, task):
        layer = task.model.layers("dense")[-1]
        weight = task.model.weights[layer.weight]
        place = 0 if self.config.kind != "weight" else weight.shape[1] * 6 + 3
        yield Localisation(self.config.kind, [layer.name], np.array([place]), np.array([2.5]))
        yield Evidence(
            "clusters",
            "Failures that look alike.",
            {"cluster": [0, 0, 1], "sample": task.repair.ids[:3], "distance": [0.0, 1.5, 0.25]},
        )
        yield Evidence("growth", "Size.", {"what": ["nodes"], "before": [3], "after": [4]})
        moved = weight.copy()
        moved[6, 3] += self.config.size + task.seed % 7 / 100
        yield Candidate(weights={layer.weight: moved})


@pytest.fixture
def shift():
    return Shift


@pytest.fixture
def make_record(tmp_path, monkeypatch):
    """Return a function that makes the record of a repetition and returns its folder."""

    class Stub:
        def load(self, name):
            return Shift

    monkeypatch.setattr(job_module, "Registry", Stub)
    home = tmp_path / "home"
    subject = tiny_subject(home / "subjects")

    def make(repetition=1, entrant="arachne", evaluated=True, **config):
        record = home / "runs" / subject.card.name / entrant / str(repetition)
        job = Job(
            approach="arachne",
            config=config,
            subject=subject.folder,
            record=record,
            repetition=repetition,
        )
        run_job(job)
        if evaluated:
            evaluate_record(record, subject.folder, attack=AttackOptions(metrics=()))
        return record

    return make


# -- studies: an approach that is installed beside the command ---------------------------------

STUB = """
import ctypes, os, time
import numpy as np
from modelfix_core import *
from modelfix_core.seeds import generator

class Stub(Approach):
    info = ApproachInfo(
        "stub", "SB", "Stub", Category.NEURON, Framework.NONE, "p", "s.", frozenset({Need.REPAIR})
    )
    class Config(ApproachConfig):
        seconds: float = 0.2
        ends: str = "well"

    def check(self, task):
        if self.config.ends == "unadaptable":
            raise Unadaptable("it has no square layer")

    def candidates(self, task):
        held, start, ends = [], time.monotonic(), self.config.ends
        layer = task.model.layers("dense")[-1]
        weight = task.model.weights[layer.weight].copy()
        yield Localisation("layer", [layer.name], np.array([0]), np.array([1.0]))
        weight += generator(task.seed, stage="stub").normal(0, 0.01, weight.shape)
        while time.monotonic() < start + self.config.seconds:
            time.sleep(0.02)
            task.progress(1, 2)
        if ends == "error":
            raise ZeroDivisionError("nothing to divide by")
        if ends == "crash":
            ctypes.string_at(0)
        while ends == "leak":
            held.append(np.ones(20_000_000, np.uint8))
            time.sleep(0.02)
        if ends == "hang":
            time.sleep(600)
        if ends == "clock":
            time.time = lambda: -1e6
            time.time_ns = lambda: -10**15
        if ends == "full":
            yield Evidence("large", "Large.", {"value": np.arange(1_000_000)})
        yield Candidate(weights={layer.weight: weight.astype(np.float32)}, step=1)
"""


@pytest.fixture(scope="session")
def stub_python(tmp_path_factory):
    """Return a Python that has the command, and the approach `stub` installed beside it."""
    folder = tmp_path_factory.mktemp("stub")
    venv.create(folder / "venv", with_pip=False)
    info = folder / "site" / "stub_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "stub_plugin.py").write_text(STUB)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[modelfix.approaches]\nstub = stub_plugin:Stub\n")
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    lines = [f"import site; site.addsitedir({here!r})", str(folder / "site")]
    (site / "stub.pth").write_text("\n".join(lines) + "\n")
    return folder / "venv" / "bin" / "python"


class StudyHome:
    """A folder with the tiny subject, a study file, and the command to run it."""

    def __init__(self, python, folder):
        self.python, self.folder = python, folder
        self.home, self.file = folder / "home", folder / "study.yaml"
        self.subject = tiny_subject(self.home / "subjects").card.name

    @property
    def runs(self):
        return self.home / "runs" / self.subject

    def write(self, entrants=("stub",), **entries):
        study = {
            "name": "tiny",
            "subjects": [self.subject],
            "entrants": list(entrants),
            "evaluation": {"attack": False},
            "resources": {"memory": 0.3},
            **entries,
        }
        self.file.write_text(yaml.safe_dump(study))

    def start(self, *arguments, command="run", **options):
        line = [self.python, "-m", "modelfix", "study", command, self.file, "--home", self.home]
        return subprocess.Popen(
            [*map(str, line), *map(str, arguments)],
            env=clean_environ() | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def run(self, *arguments, **options):
        process = self.start(*arguments, **options)
        process.out, process.err = process.communicate(timeout=600)
        return process

    def standings(self):
        done = self.run("--json", command="status")
        assert done.returncode == 0, done.err
        return {f"{row['entrant']}/{row['repetition']}": row for row in json.loads(done.out)}

    def records(self):
        """Return what the records say that does not depend on when and how fast they were made."""
        found = {}
        for path in sorted(self.runs.glob("*/*/record.json")):
            content = json.loads(path.read_text())
            evaluation = content["evaluation"] or {}
            for varying in ("seconds", "provenance"):
                content.pop(varying), evaluation.pop(varying, None)
            files = {
                file.relative_to(path.parent).as_posix(): file_hash(file)
                for file in sorted(path.parent.rglob("*"))
                if file.suffix in (".onnx", ".parquet")
            }
            lines = (path.parent / "candidates.jsonl").read_text().splitlines()
            content["candidates"] = [{**json.loads(line), "seconds": None} for line in lines]
            names = sorted(file.name for file in path.parent.iterdir())
            found[str(path.parent.relative_to(self.runs))] = content, files, names
        return found

    def leftovers(self):
        """Return what is neither record nor lock below the runs."""
        entrants = [path for path in self.runs.iterdir() if path.is_dir()]
        names = [path.name for entrant in entrants for path in entrant.iterdir()]
        return [name for name in names if not (name.isdigit() or name.endswith(".lock"))]


@pytest.fixture
def make_home(stub_python, tmp_path):
    """Return a function that makes a named home."""
    return lambda name: StudyHome(stub_python, tmp_path / name)


@pytest.fixture
def study_home(make_home):
    return make_home("one")
