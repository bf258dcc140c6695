"""How a subject's model is trained: every option of a recipe reaches the network."""

import numpy as np
import pytest
import torch
from modelfix_core import Split
from modelfix_core.subjects import Recipe
from modelfix_core.subjects.architectures import vgg
from modelfix_core.subjects.training import reproducible, train


@pytest.fixture(scope="module")
def split():
    """Two classes that differ by the side on which an image is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 256)
    x = rng.integers(0, 80, (256, 3, 8, 8), dtype=np.uint8)
    x[:, :, :4][y == 0] += 120
    x[:, :, 4:][y == 1] += 120
    return Split(x, y)


def trained(split, state, **recipe):
    recipe = Recipe(**{"learning_rate": 0.02, "batch_size": 32, "epochs": 3, **recipe})
    with reproducible(0):
        network = vgg(2, 3, 8, blocks=((8,), (16,)), hidden=(16,))
        done = []
        steps = list(
            train(network, split, recipe, seed=0, state=state, on_step=lambda *s: done.append(s))
        )
    assert steps == list(range(1, recipe.epochs + 1))
    assert done[-1] == (8 * recipe.epochs, 8 * recipe.epochs)
    return network


def accuracy(network, split):
    with torch.inference_mode():
        logits = network(torch.from_numpy(split.images()))
    return float((logits.argmax(1).numpy() == split.y).mean())


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "schedule": "cosine", "weight_decay": 5e-4},
        {"optimizer": "sgd", "schedule": "one-cycle", "flip": True, "crop_padding": 1},
        {"optimizer": "sgd", "precision": "bf16-mixed", "channels_last": True},
    ],
)
def test_it_learns(split, tmp_path, options):
    network = trained(split, tmp_path / "state.pt", **options)
    assert accuracy(network, split) > 0.95
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"schedule": "cosine"},
        {"weight_decay": 0.01},
        {"flip": True},
        {"crop_padding": 1},
        {"precision": "bf16-mixed"},
    ],
)
def test_each_option_changes_the_weights_and_the_seed_repeats_them(split, tmp_path, change):
    plain, changed, again = (
        trained(split, tmp_path / f"{number}.pt", **options).state_dict()
        for number, options in enumerate(({}, change, change))
    )
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)
    assert all(torch.equal(again[name], changed[name]) for name in plain)


def test_it_goes_on_after_the_last_finished_epoch(split, tmp_path):
    options = {"optimizer": "sgd", "schedule": "one-cycle", "flip": True}
    whole = trained(split, tmp_path / "whole.pt", **options).state_dict()
    recipe = Recipe(learning_rate=0.02, batch_size=32, epochs=3, **options)
    with reproducible(0):
        network = vgg(2, 3, 8, blocks=((8,), (16,)), hidden=(16,))
        run = train(network, split, recipe, seed=0, state=tmp_path / "s", on_step=lambda *_: None)
        assert [next(run), next(run)] == [1, 2]  # the second is not asked to be kept
    with reproducible(0):
        network = vgg(2, 3, 8, blocks=((8,), (16,)), hidden=(16,))
        run = train(network, split, recipe, seed=0, state=tmp_path / "s", on_step=lambda *_: None)
        assert list(run) == [2, 3]
    assert all(torch.equal(network.state_dict()[name], whole[name]) for name in whole)
