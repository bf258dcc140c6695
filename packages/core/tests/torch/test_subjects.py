"""Named subjects trained for real, with recipes of a second."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from modelfix_core import Model, ModelfixError
from modelfix_core.progress import ProgressReporter
from modelfix_core.subject import Subject, prepared_subjects
from modelfix_core.subjects import CATALOGUE, Recipe, prepare
from modelfix_core.subjects.catalogue import NamedSubject

QUICK = Recipe(learning_rate=1e-3, batch_size=250, epochs=2)


def quick(name: str, **changes) -> NamedSubject:
    return CATALOGUE[name].model_copy(update={"recipe": QUICK, **changes})


LENET = quick("fashion-mini-lenet5")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("subjects")


@pytest.fixture(scope="module")
def prepared(root) -> Subject:
    return prepare(LENET, root).subject


def test_the_subject_is_complete(prepared):
    card = prepared.card
    assert prepared.problems() == []
    assert card.splits == LENET.splits
    assert card.input_shape == (1, 28, 28)
    assert card.model_hash == prepared.model.hash
    assert prepared.model.labels == card.classes
    assert prepared.model.accuracy(prepared.dataset()["validation"]) == card.validation_accuracy
    assert card.validation_accuracy > 0.4  # far above the 0.1 of guessing
    assert card.recipe["epochs"] == 2
    assert card.seconds["training"] > 0
    assert "torch" in card.versions
    assert "MIT" in card.provenance["licence"]


def test_the_history_ends_with_the_model(prepared):
    first, last = (Model.load(path) for path in prepared.history)
    original = prepared.model
    assert first.weights.keys() == last.weights.keys() == original.weights.keys()
    assert last.hash == original.hash
    assert not np.array_equal(first.weights["fc3.weight"], last.weights["fc3.weight"])
    assert first.predict(prepared.dataset()["test"]).shape == (1500, 10)


def test_normalisation_lies_inside_the_graph(prepared):
    np.testing.assert_allclose(prepared.model.weights["normalise.mean"].ravel(), LENET.mean)


def test_a_complete_subject_is_reused(prepared, root):
    before = (prepared.folder / "model.onnx").stat().st_mtime_ns
    again = prepare(LENET, root)
    assert again.reused
    assert (prepared.folder / "model.onnx").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_subject(prepared, tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.random.get_rng_state()
    twin = prepare(LENET, tmp_path).subject.card
    assert twin.model_hash == prepared.card.model_hash
    assert twin.data_hash == prepared.card.data_hash
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing seeded outside


def test_another_seed_gives_another_subject(prepared, tmp_path):
    other = prepare(LENET, tmp_path, seed=1).subject.card
    assert other.model_hash != prepared.card.model_hash
    assert other.data_hash != prepared.card.data_hash


def test_a_changed_recipe_or_a_damaged_file_prepares_again(tmp_path):
    one_epoch = quick("fashion-mini-lenet5", recipe=QUICK.model_copy(update={"epochs": 1}))
    prepare(one_epoch, tmp_path)
    renewed = prepare(LENET, tmp_path)
    assert not renewed.reused
    assert len(renewed.subject.history) == 2
    (renewed.subject.folder / "test" / "y.npy").unlink()
    assert not prepare(LENET, tmp_path).reused
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["fashion-mini-lenet5"]


def test_the_fairness_variant(tmp_path):
    # The small network stands in for the ResNet, which takes seconds per epoch.
    subject = prepare(quick("fashion-mini-s-resnet8", architecture="lenet5"), tmp_path).subject
    assert subject.problems() == []
    assert subject.card.sensitive_attribute == "colour"
    assert subject.card.splits["test"] == 3_000
    assert subject.card.input_shape == (3, 28, 28)
    assert set(np.unique(subject.dataset()["test"].group)) == {0, 1}


@pytest.mark.slow
def test_the_fairness_variant_is_unfair_with_its_own_recipe(tmp_path):
    subject = prepare("fashion-mini-s-resnet8", tmp_path).subject
    test = subject.dataset()["test"]
    right = subject.model.predict(test).argmax(axis=1) == test.y
    # How much more often an image is recognised in its class's majority colour.
    majority = np.where(test.y % 2 == 0, 1, 0) == test.group
    assert right[majority].mean() - right[~majority].mean() > 0.1
    assert subject.model.layers("batchnorm")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("modelfix_core.dataset.np.save", full)
    with pytest.raises(ModelfixError, match="the disk is full"):
        prepare(LENET, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_unusable_device_is_said(tmp_path):
    with pytest.raises(ModelfixError, match="device 'nonsense' cannot be used"):
        prepare(LENET, tmp_path, device="nonsense")
    assert prepared_subjects(tmp_path) == ([], [])


def test_training_goes_on_where_it_was_interrupted(prepared, tmp_path, monkeypatch):
    steps = []

    class Interrupting(ProgressReporter):
        def __call__(self, done, total, note):
            steps.append(done)
            if len(steps) == 30:  # in the second epoch of 24 steps
                raise KeyboardInterrupt

    # By its module: the package gives the name `prepare` to the function.
    module = sys.modules["modelfix_core.subjects.prepare"]
    monkeypatch.setattr(module, "ProgressReporter", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        prepare(LENET, tmp_path)
    assert prepared_subjects(tmp_path) == ([], [])
    card = prepare(LENET, tmp_path).subject.card
    assert steps[30:] == list(range(25, 49))
    assert card.model_hash == prepared.card.model_hash
    assert card.history_hashes == prepared.card.history_hashes
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [LENET.name]


def test_what_another_definition_has_left_is_not_taken_up(prepared, tmp_path):
    left = tmp_path / f".{LENET.name}.training"
    left.mkdir()
    (left / "identity.txt").write_text("another")
    (left / "state.pt").write_bytes(b"never read")
    assert prepare(LENET, tmp_path).subject.card.model_hash == prepared.card.model_hash


KILLED = """
import sys
from modelfix_core.subjects import CATALOGUE, Recipe, prepare
slow = Recipe(learning_rate=1e-3, batch_size=250, epochs=500)
prepare(CATALOGUE["fashion-mini-lenet5"].model_copy(update={"recipe": slow}), sys.argv[1])
"""


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_that_is_ended_leaves_no_subject_and_the_next_one_works(tmp_path, end):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test run in the background ignores interrupts; what it starts would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first_epoch = tmp_path / ".fashion-mini-lenet5.training" / "history" / "epoch-01.onnx"
    deadline = time.monotonic() + 600  # of a loaded machine
    while not first_epoch.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(ModelfixError, match="another process is preparing"):
        prepare(LENET, tmp_path)
    process.send_signal(end)
    process.communicate()
    assert prepared_subjects(tmp_path) == ([], [])
    with pytest.raises(ModelfixError, match="no prepared subject"):
        Subject.load(tmp_path / "fashion-mini-lenet5")
    assert not prepare(LENET, tmp_path).reused
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["fashion-mini-lenet5"]
