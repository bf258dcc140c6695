"""Records of a stand-in approach on the tiny subject, evaluated without the attack."""

import numpy as np
import pytest
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
