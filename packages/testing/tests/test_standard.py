"""The standard tests, tried on approaches that are right and on ones that are wrong."""

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from modelfix_core import (
    Approach,
    ApproachConfig,
    ApproachInfo,
    Candidate,
    Category,
    Framework,
    Localisation,
    Need,
    Task,
    Unadaptable,
)
from modelfix_core.seeds import generator
from modelfix_testing import ApproachStandardTests, standard
from pydantic import Field


class Good(Approach):
    """Moves the last biases a little, at random."""

    info = ApproachInfo(
        name="good",
        abbreviation="GD",
        title="Good",
        category=Category.NEURON,
        framework=Framework.NONE,
        paper="none",
        summary="Moves biases a little.",
        needs=frozenset({Need.REPAIR}),
    )

    class Config(ApproachConfig):
        steps: int = Field(3, description="How often.")

    def check(self, task: Task) -> None:
        if not task.model.layers("dense"):
            raise Unadaptable("there is no dense layer")

    def candidates(self, task: Task) -> Iterator[Candidate | Localisation]:
        layer = task.model.layers("dense")[-1]
        bias = task.model.weights[layer.bias]
        rng = generator(task.seed, stage="move")
        yield Localisation("neuron", [layer.name], np.array([0]), np.array([1.0]))
        for step in range(self.config.steps):
            task.progress(step, self.config.steps)
            moved = bias + rng.normal(size=bias.shape).astype(np.float32) * 0.01
            yield Candidate(weights={layer.bias: moved}, step=step)


class Unseeded(Good):
    def candidates(self, task):
        for proposal in super().candidates(task):
            if isinstance(proposal, Candidate):
                noise = np.random.default_rng().normal(size=10).astype(np.float32)
                proposal = Candidate(weights={k: v + noise for k, v in proposal.weights.items()})
            yield proposal


class Global(Good):
    def candidates(self, task):
        np.random.seed(3)  # noqa: NPY002
        yield from super().candidates(task)


class Deaf(Good):
    def candidates(self, task):
        object.__setattr__(task.budget, "seconds", None)
        yield from super().candidates(task)


class Careless(Good):
    def check(self, task):
        pass


class Silent(Good):
    class Config(ApproachConfig):
        steps: int = 3


class Liar(Good):
    def candidates(self, task):
        yield Candidate(weights={}, validation_accuracy=1.0)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Let the entry points lead here."""
    point = EntryPoint("good", f"{__name__}:Good", "modelfix.approaches")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Good)
    monkeypatch.setattr(standard, "entry_points", lambda group: [point])


class TestGood(ApproachStandardTests):
    approach = Good

    def test_metadata_needs_no_framework(self):
        pytest.skip("this approach is not installed; every approach's own tests run it")

    def test_job_records_and_reuses(self, tmp_path, monkeypatch):
        monkeypatch.setattr("modelfix_core.job.Registry.load", lambda self, name: Good)
        super().test_job_records_and_reuses(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (Unseeded, "test_same_seed_same_result"),
        (Global, "test_global_random_state_is_left_alone"),
        (Deaf, "test_budget_is_obeyed"),
        (Careless, "test_unadaptable_is_said_before_any_work"),
        (Silent, "test_every_option_says_what_it_means"),
        (Liar, "test_candidate_accuracies_are_true"),
        (Liar, "test_tiny_subject_is_done_in_a_minute"),
    ],
)
def test_wrong_approaches_are_caught(wrong, name):
    tests = type("Tests", (ApproachStandardTests,), {"approach": wrong})()
    test = getattr(tests, name)
    needs_run = "fixing" in test.__code__.co_varnames[: test.__code__.co_argcount]
    arguments = []
    if needs_run:
        task = tests.task()
        arguments = [(task, standard.run(wrong(), task))]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(*arguments)


def test_no_standard_test_is_left_untried():
    names = [name for name in vars(ApproachStandardTests) if name.startswith("test_")]
    assert len(names) == len(set(names)) >= 18
    assert all(re.fullmatch(r"test_[a-z_]+", name) for name in names)
