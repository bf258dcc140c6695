from dataclasses import replace

import numpy as np
import pytest
import torch
from modelfix_core import Outcome, Split, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.seeds import generator
from modelfix_core.torch import load
from modelfix_fsgmix import FSGMix, FSGMixConfig
from modelfix_fsgmix.descriptor import describe, reduced
from modelfix_fsgmix.fine_tuning import Companions, repair, views_of
from modelfix_fsgmix.guidance import draw_shots, guide
from torch import nn

QUICK = {"learning_rates": (1e-2,), "epochs": 1, "probe": 128}


def test_original_is_the_first_candidate_and_says_what_guided(rotated_task):
    task, _, _ = rotated_task()
    first, *others = FSGMix(learning_rates=(1e-2, 1e-3), epochs=2, probe=128).candidates(task)
    assert first.weights == {}
    assert first.values["guided"]
    assert first.values["shots"] <= first.values["failures"]
    assert [c.step for c in others] == [1, 2, 1, 2]
    assert [c.values["learning_rate"] for c in others] == [1e-2, 1e-2, 1e-3, 1e-3]


def test_interrupted_run_goes_on(rotated_task, tmp_path):
    approach = FSGMix(learning_rates=(1e-2, 1e-3), epochs=2, probe=128)
    whole = run(approach, rotated_task()[0])
    task = rotated_task(folder=tmp_path)[0]
    started = approach.candidates(task)
    for _ in range(3):
        next(started)
    started.close()
    assert run(approach, task).model.hash == whole.model.hash


def test_learning_rates_start_from_the_original(rotated_task):
    task, _, _ = rotated_task()
    alone = list(FSGMix(learning_rates=(1e-3,), epochs=1, probe=128).candidates(task))[-1]
    second = list(FSGMix(learning_rates=(1e-2, 1e-3), epochs=1, probe=128).candidates(task))[-1]
    for name, array in alone.weights.items():
        np.testing.assert_array_equal(second.weights[name], array)


def test_destructive_rate_stops_after_two_epochs(rotated_task, monkeypatch):
    from modelfix_core.torch import training

    monkeypatch.setattr(training, "is_hopeless", lambda losses, _: len(losses) == 2)
    task, _, _ = rotated_task()
    steps = [
        c.step for c in FSGMix(learning_rates=(1e-2, 1e-3), epochs=4, probe=128).candidates(task)
    ]
    assert steps == [0, 1, 2, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "expanded"},
        {"fail_mix": True},
        {"include_failures": True},
        {"views": 1, "width": 2, "crop": 2, "flip": True, "images_per_epoch": 300},
        {"precision": "bf16-mixed", "recalibrate_bn": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_the_result(rotated_task, options):
    task, _, _ = rotated_task()
    plain = list(FSGMix(**QUICK).candidates(task))[-1]
    other = list(FSGMix(**QUICK, **options).candidates(task))[-1]
    assert other.values["loss"] != plain.values["loss"]
    assert np.isfinite(other.values["loss"])


# -- applicability -----------------------------------------------------------------------------


def test_too_few_failures(rotated_task, digits):
    task, _, _ = rotated_task()
    right = task.model.predict(digits).argmax(axis=1) == digits.y
    index = np.concatenate([np.flatnonzero(right)[:50], np.flatnonzero(~right)[:1]])
    result = run(FSGMix(**QUICK), replace(task, repair=digits.select(index)))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "1 images" in result.reason


def test_what_cannot_be_taken(rotated_task, model_of):
    task, _, _ = rotated_task()
    with pytest.raises(Unadaptable, match="training images"):
        FSGMix().check(replace(task, train=None))
    for shape in ((2, 8, 8), (1, 1, 16)):
        layers = [nn.Flatten(), nn.Linear(int(np.prod(shape)), 10)]
        with pytest.raises(Unadaptable, match="images with 1 or 3 channels"):
            FSGMix().check(replace(task, model=model_of(shape, layers)))
    with pytest.raises(Unadaptable, match="no layer"):
        FSGMix().check(replace(task, model=model_of((1, 2 * 2, 5), [nn.Flatten()])))


# -- guidance ----------------------------------------------------------------------------------


def test_shots_are_few_per_class_and_in_all():
    y = np.repeat([0, 1, 2], [50, 5, 45])
    failing = np.arange(0, 100, 2)
    rng = np.random.default_rng(0)
    shots = draw_shots(failing, y, FSGMixConfig(n_shot=4), rng)
    assert np.bincount(y[shots]).tolist() == [4, 3, 4]
    assert np.isin(shots, failing).all()
    assert len(np.unique(shots)) == 11
    assert len(draw_shots(failing, y, FSGMixConfig(n_shot=4, shots_at_most=3), rng)) == 3


def test_guidance_is_that_of_the_seed(rotated_task):
    task, _, _ = rotated_task()
    one, same, other = (
        guide(task.model, task.train, task.repair, FSGMixConfig(n_shot=2, probe=128), seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.shots, same.shots)
    np.testing.assert_array_equal(one.distances, same.distances)
    assert one.mixing == same.mixing
    assert not np.array_equal(one.shots, other.shots)
    assert np.isclose(one.probabilities.sum(), 1)


def test_weight_has_a_floor(digits, oracle, transform):
    failing = transform(digits.select(slice(1000, 1050)), "brightness", 0.9)
    config = FSGMixConfig(n_shot=100, weight_floor=0.9)
    guidance = guide(oracle(50), digits.select(slice(0, 1000)), failing, config, seed=0)
    assert guidance.guided
    assert guidance.weight < 0.9
    assert guidance.mixing.weight == 0.9


def test_classes_without_training_images_are_described(digits, oracle):
    train = digits.select(np.flatnonzero(digits.y != 9)[:800])
    nines = digits.select(np.flatnonzero(digits.y == 9)[:30])
    guidance = guide(oracle(30), train, nines, FSGMixConfig(n_shot=100), seed=0)
    assert np.isfinite(guidance.distances).all()
    assert guidance.guided


def test_colour_images_and_large_ones():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((4, 3, 90, 120), dtype=np.float32))
    small = reduced(images, 64)
    assert small.shape == (4, 3, 64, 64)
    assert describe(small).shape == (4, 6 + 6 + 5)
    assert describe(images[:, :1, :30, :30]).shape == (4, 2 + 3 + 5)
    assert reduced(small, 64) is small


def test_descriptor_knows_what_changes():
    image = torch.zeros(1, 1, 16, 16)
    image[..., 6:10, 4:12] = 0.8
    base = describe(image)[0]
    centroid_y, centroid_x, var_y, var_x, cross = range(-5, 0)
    right = describe(image.roll(2, dims=3))[0]
    assert right[centroid_x] > base[centroid_x] + 0.2
    torch.testing.assert_close(right[centroid_y], base[centroid_y])
    torch.testing.assert_close(right[:2], base[:2])
    tilted = image.clone()
    tilted[..., 6:8, :] = tilted[..., 6:8, :].roll(2, dims=3)
    assert abs(describe(tilted)[0][cross]) > abs(base[cross]) + 1e-3
    assert base[var_x] > base[var_y]
    darker = describe(image / 2)[0]
    torch.testing.assert_close(darker[:2], base[:2] / 2)
    torch.testing.assert_close(darker[-5:], base[-5:])
    noisy = describe((image + torch.rand(1, 1, 16, 16) * 0.2).clamp(0, 1))[0]
    assert (noisy[2:8] > base[2:8]).sum() >= 4


# -- fine-tuning -------------------------------------------------------------------------------


def test_companions_are_failures_of_the_class():
    x = np.zeros((6, 1, 4, 4), dtype=np.float32)
    y = np.array([2, 0, 2, 5, 0, 2])
    x += np.arange(6, dtype=np.float32)[:, None, None, None] / 10
    drawn = Companions(Split(x, y), "cpu").draw(
        torch.ones(400, 1, 4, 4), torch.arange(400) % 8, np.random.default_rng(0)
    )[:, 0, 0, 0]
    seen = {
        k: sorted(set(np.round(drawn[torch.arange(400) % 8 == k].numpy() * 10))) for k in range(8)
    }
    assert seen[0] == [1, 4]
    assert seen[2] == [0, 2, 5]
    assert seen[5] == [3]
    for absent in (1, 3, 4, 6, 7):
        assert seen[absent] == [10]


def test_views_begin_with_the_image(rotated_task):
    task, _, _ = rotated_task()
    config = FSGMixConfig()
    guidance = guide(task.model, task.train, task.repair, config, seed=0)
    views = views_of(config, guidance, task.repair.select(guidance.shots), "cpu")
    x, y = torch.from_numpy(task.train.images(slice(0, 8))), torch.from_numpy(task.train.y[:8])
    stack = views(x, y, generator(0, stage="test"))
    assert stack.shape == (3, 8, 1, 28, 28)
    assert torch.equal(stack[0], x)


def test_repair_starts_from_the_original_whatever_the_net_holds(rotated_task):
    task, _, _ = rotated_task()
    config = FSGMixConfig(**QUICK)
    guidance = guide(task.model, task.train, task.repair, config, seed=0)
    net, changed = load(task.model), load(task.model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(1)
    one, other = (list(repair(n, task, config, guidance))[-1] for n in (net, changed))
    for name, array in one.weights.items():
        np.testing.assert_array_equal(other.weights[name], array)
