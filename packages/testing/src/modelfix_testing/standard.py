"""The standard tests: inherit `ApproachStandardTests` and name the approach, nothing else.

A test may be overridden only together with an expected failure and its reason.
"""

import json
import random
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
from modelfix_core import (
    Approach,
    Budget,
    Candidate,
    Fixing,
    Model,
    ModelfixError,
    Outcome,
    Task,
    Unadaptable,
)
from modelfix_core.fixing import run
from modelfix_core.job import Job, run_job
from modelfix_core.record import Record
from modelfix_core.registry import GROUP

from modelfix_testing.tiny import layerless_model, tiny_subject, tiny_task

A_MINUTE = 60.0


class ApproachStandardTests:
    """What every approach must do.

    Attributes
    ----------
    approach : type of Approach
        The class under test; set it.
    config : dict
        Options that make it quick on the tiny subject.
    """

    approach: ClassVar[type[Approach]]
    config: ClassVar[dict[str, Any]] = {}

    def task(self, **changes: Any) -> Task:
        """Return the task of the tests; override it where an approach needs another one."""
        return tiny_task(**changes)

    def unadaptable_task(self) -> Task:
        """Return a task that the approach cannot take: by default a model without any layer."""
        model = tiny_task().model
        return tiny_task(model=layerless_model(model.input_shape, model.num_classes), history=())

    @pytest.fixture(scope="class")
    def fixing(self) -> tuple[Task, Fixing]:
        """One run on the tiny subject, shared by the tests that only look at it."""
        task = self.task(budget=Budget(seconds=A_MINUTE))
        return task, run(self.approach(**self.config), task)

    # -- what it says of itself ----------------------------------------------------------------

    def test_entry_point_leads_to_the_class(self) -> None:
        found = {p.name: p for p in entry_points(group=GROUP)}
        assert found[self.approach.info.name].load() is self.approach

    def test_metadata_needs_no_framework(self) -> None:
        point = next(p for p in entry_points(group=GROUP) if p.name == self.approach.info.name)
        code = (
            "import json, sys\n"
            f"from {point.module} import {point.attr} as found\n"
            "found.info, found()\n"
            "print(json.dumps([m for m in ('torch', 'tensorflow', 'keras') if m in sys.modules]))"
        )
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert json.loads(output.stdout) == []

    def test_metadata_is_complete(self) -> None:
        info = self.approach.info
        texts = (info.name, info.abbreviation, info.title, info.paper, info.summary, info.certainty)
        assert all(texts)
        assert info.summary.endswith(".")
        assert info.certainty in ("code", "paper", "study-text")

    def test_every_option_says_what_it_means(self) -> None:
        silent = [k for k, f in self.approach.Config.model_fields.items() if not f.description]
        assert silent == []

    def test_every_preset_is_valid(self) -> None:
        assert "default" in self.approach.presets
        for preset in self.approach.presets:
            self.approach(preset)

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ModelfixError, match="no_such_option"):
            self.approach(no_such_option=1)

    # -- what it does --------------------------------------------------------------------------

    def test_tiny_subject_is_done_in_a_minute(self, fixing: tuple[Task, Fixing]) -> None:
        _, result = fixing
        assert result.outcome in (Outcome.FIXED, Outcome.CORRUPTED), result.reason
        assert "time limit" not in (result.reason or "")

    def test_input_model_is_untouched(self, fixing: tuple[Task, Fixing]) -> None:
        task, _ = fixing
        assert task.model.hash == tiny_or_own_hash(self)
        assert not any(array.flags.writeable for array in task.model.weights.values())

    def test_signature_is_preserved(self, fixing: tuple[Task, Fixing]) -> None:
        task, result = fixing
        assert result.model is not None
        assert result.model.input_shape == task.model.input_shape
        assert result.model.num_classes == task.model.num_classes
        assert result.model.input_name == task.model.input_name
        assert result.model.output_name == task.model.output_name

    def test_saved_model_predicts_the_same(
        self, fixing: tuple[Task, Fixing], tmp_path: Path
    ) -> None:
        task, result = fixing
        assert result.model is not None
        result.model.save(tmp_path / "fixed.onnx")
        again = Model.load(tmp_path / "fixed.onnx")
        np.testing.assert_array_equal(again.predict(task.repair), result.model.predict(task.repair))

    def test_blame_points_into_the_model(self, fixing: tuple[Task, Fixing]) -> None:
        task, result = fixing
        if result.localisation is None:
            pytest.skip("this approach does not localise")
        blamed = result.localisation
        sizes = {
            layer.name: {
                "weight": task.model.weights[layer.weight].size,
                "neuron": task.model.weights[layer.weight].shape[0],
                "layer": 1,
            }[blamed.kind]
            for layer in task.model.layers()
        }
        assert set(blamed.layer) <= sizes.keys()
        assert all(0 <= i < sizes[n] for n, i in zip(blamed.layer, blamed.index, strict=True))
        assert np.isfinite(blamed.score).all()

    def test_same_seed_same_result(self, fixing: tuple[Task, Fixing]) -> None:
        _, first = fixing
        second = run(self.approach(**self.config), self.task())
        assert first.model is not None
        assert second.model is not None
        assert second.model.hash == first.model.hash

    def test_global_random_state_is_left_alone(self) -> None:
        def state() -> tuple[str, str]:
            return str(random.getstate()), str(np.random.get_state(legacy=False))  # noqa: NPY002

        before = state()
        next(self.approach(**self.config).candidates(self.task()))
        assert state() == before

    def test_unadaptable_is_said_before_any_work(self) -> None:
        approach = self.approach(**self.config)
        with mock.patch.object(type(approach), "candidates") as work:
            result = run(approach, self.unadaptable_task())
        assert result.outcome is Outcome.UNADAPTABLE
        assert result.reason
        work.assert_not_called()

    def test_check_accepts_the_tiny_subject(self) -> None:
        try:
            self.approach(**self.config).check(self.task())
        except Unadaptable as reason:
            pytest.fail(f"the approach cannot take the tiny subject: {reason}")

    def test_budget_is_obeyed(self) -> None:
        reports: list[int] = []
        task = self.task(
            budget=Budget(seconds=1e-9), reporter=lambda done, total, note: reports.append(done)
        )
        result = run(self.approach(**self.config), task)
        assert len(reports) == 1, "work went on after the time was used up"
        assert "time limit" in (result.reason or "")

    def test_test_split_is_out_of_reach(self, tmp_path: Path) -> None:
        assert not any("test" in name for name in vars(self.task()))

    def test_candidate_accuracies_are_true(self) -> None:
        task = self.task()
        for proposal in self.approach(**self.config).candidates(task):
            if isinstance(proposal, Candidate) and proposal.validation_accuracy is not None:
                true = proposal.apply(task.model).accuracy(task.validation)
                assert proposal.validation_accuracy == pytest.approx(
                    true, abs=2 / len(task.validation)
                )
                return

    def test_job_records_and_reuses(self, tmp_path: Path) -> None:
        subject = tiny_subject(tmp_path)
        for file in (tmp_path / subject.card.name / "test").iterdir():
            file.write_bytes(b"poison")  # nothing that fixes may read it
        job = Job(
            approach=self.approach.info.name,
            config=self.config,
            subject=tmp_path / subject.card.name,
            record=tmp_path / "runs" / "1",
        )
        record, reused = run_job(job)
        assert not reused
        assert record.outcome in list(Outcome)
        assert Record.load(job.record) == record
        again, reused = run_job(job)
        assert reused
        assert again == record


def tiny_or_own_hash(tests: ApproachStandardTests) -> str:
    """Return the hash of a freshly loaded model of the task under test."""
    return tests.task().model.hash
