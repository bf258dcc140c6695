"""What the tests of approaches may rely on in the study's subjects."""

import numpy as np
import pytest
from modelfix_core import Model
from modelfix_testing import STUDY_SUBJECTS, study_model, study_task


@pytest.mark.parametrize("name", STUDY_SUBJECTS)
def test_tasks_run(name, tmp_path):
    task = study_task(name, tmp_path)
    logits = task.model.predict(task.repair)
    assert logits.shape == (len(task.repair), task.model.num_classes)
    assert np.isfinite(logits).all()
    assert (task.risks is None) == (name in ("mnist-lenet5", "utkface-facenet"))
    assert bool(task.history) == (name != "imagenet-densenet121")
    for path in task.history:
        assert Model.load(path).weights.keys() == task.model.weights.keys()


def test_dense_layers_decide_who_can_be_applied():
    shapes = {
        name: [
            (layer.input_shape[0], layer.output_shape[0])
            for layer in study_model(name, width=1).layers("dense")
        ]
        for name in STUDY_SUBJECTS
    }
    assert shapes == {
        "mnist-lenet5": [(144, 120), (120, 84), (84, 10)],
        "utkface-facenet": [(4096, 128), (128, 2)],
        "cifar10-vgg16": [(512, 512), (512, 512), (512, 10)],
        "cifar10s-resnet18": [(512, 10)],
        "imagenet-densenet121": [(1024, 1000)],
    }


def test_the_seed_decides_the_weights():
    first, again, other = (study_model("cifar10-vgg16", seed=seed) for seed in (0, 0, 1))
    assert first.hash == again.hash != other.hash
