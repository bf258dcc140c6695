"""What the specification of FSGMix promises, numbered as its list of checks."""

import math

import numpy as np
import pytest
import torch
from modelfix_core import Outcome, Split
from modelfix_core.fixing import run
from modelfix_core.torch import augment
from modelfix_core.torch.augment import Mixing, Variant
from modelfix_core.torch.training import consistency, jensen_shannon
from modelfix_fsgmix import FSGMix, FSGMixConfig
from modelfix_fsgmix.guidance import guide
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

SHOTS = 50


def guided_by(failing, digits, oracle, seed=0, **options):
    """Guidance by failures that are exactly the given images."""
    config = FSGMixConfig(n_shot=1000, **options)
    return guide(oracle(len(failing)), digits.select(slice(0, 1000)), failing, config, seed=seed)


def held_out(digits):
    return digits.select(slice(1000, 1000 + SHOTS))


# -- 1: loss ---------------------------------------------------------------------------------------


def augmix_loss(logits, y, weight):
    clean, one, two = (functional.softmax(part, dim=1) for part in logits)
    mixture = torch.clamp((clean + one + two) / 3, 1e-7, 1).log()
    divergence = sum(
        functional.kl_div(mixture, p, reduction="batchmean") for p in (clean, one, two)
    )
    return functional.cross_entropy(logits[0], y) + weight * divergence / 3


def test_1_loss_is_that_of_augmix():
    rng = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0):
        logits = torch.randn(3, 64, 10, generator=rng) * scale
        y = torch.randint(0, 10, (64,), generator=rng)
        expected = float(augmix_loss(logits, y, 12))
        assert float(consistency(logits, y, 12)) == pytest.approx(expected, abs=1e-5, rel=1e-6)
        exact = float(augmix_loss(logits.double(), y, 12))
        assert float(consistency(logits.double(), y, 12)) == pytest.approx(exact, abs=1e-6)


def test_1_divergence_is_zero_symmetric_and_bounded():
    logits = torch.randn(3, 64, 10, generator=torch.Generator().manual_seed(0)) * 3
    assert float(jensen_shannon(logits[:1].expand(3, -1, -1))) == pytest.approx(0, abs=1e-6)
    value = float(jensen_shannon(logits))
    for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0]):
        assert float(jensen_shannon(logits[order])) == pytest.approx(value, rel=1e-6)
    opposite = torch.eye(3)[:, None, :] * 100
    assert 0 < value < float(jensen_shannon(opposite)) <= math.log(3) + 1e-6


# -- 2 and 3: views --------------------------------------------------------------------------------


def test_2_without_weight_a_view_is_the_image(digits):
    x = torch.from_numpy(digits.images(slice(0, 32)))
    mixing = Mixing.uniform((1, 28, 28), weight=0.0, spread=0.0)
    for view in augment.views(x, mixing, np.random.default_rng(0), 2):
        assert torch.equal(view, x)


def test_2_mixtures_are_convex(digits):
    x = torch.from_numpy(digits.images(slice(0, 32)))
    mixing = Mixing.uniform((1, 28, 28))
    rng = np.random.default_rng(0)
    chained = augment.chains(x, mixing, rng, 2)
    shares = rng.dirichlet(np.ones(3), size=(2, 32))
    np.testing.assert_allclose(shares.sum(axis=-1), 1)
    mixed = augment.mix(chained, shares)
    around = torch.cat([chained, x.expand(2, 1, *x.shape)], dim=1)
    for weight in (0.0, 0.3, 1.0):
        view = torch.lerp(x.expand_as(mixed), mixed, weight)
        assert (view >= around.amin(dim=1) - 1e-6).all()
        assert (view <= around.amax(dim=1) + 1e-6).all()


def test_2_weights_of_a_view_sum_to_one():
    # Every operation keeps a white image white here, so only the weights could change it.
    mixing = Mixing((Variant("autocontrast"), Variant("equalize")), (0.5, 0.5), weight=0.7)
    views = augment.views(torch.ones(16, 1, 8, 8), mixing, np.random.default_rng(0), 2)
    torch.testing.assert_close(views, torch.ones_like(views))


def test_3_two_different_views_that_the_seed_decides(digits):
    x = torch.from_numpy(digits.images(slice(0, 32)))
    mixing = Mixing.uniform((1, 28, 28), weight=0.5)
    one, again = (augment.views(x, mixing, np.random.default_rng(3), 2) for _ in range(2))
    assert one.shape == (2, 32, 1, 28, 28)
    assert (one[0] != one[1]).flatten(1).any(dim=1).all()
    assert torch.equal(one, again)


# -- 4 and 5: planted shifts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "value", "planted", "rank"),
    [
        ("rotate", 9, Variant("rotate", 3, 1), 1),
        ("shear_x", -0.09, Variant("shear_x", 3, -1), 3),
        ("translate_x", 2, Variant("translate_x", 3, 1), 1),
        ("contrast", 0.28, Variant("contrast", 1, 1), 1),
        ("solarize", 180, Variant("solarize", 3, 1), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_4_planted_shift_is_found(digits, oracle, transform, operation, value, planted, rank):
    failing = transform(held_out(digits), operation, value)
    guidance = guided_by(failing, digits, oracle)
    assert guidance.guided
    best = [guidance.variants[i] for i in np.argsort(guidance.distances)[:rank]]
    assert planted in best
    likely = {guidance.variants[i] for i in np.argsort(-guidance.probabilities)[:rank]}
    assert planted in likely


def test_5_full_shift_is_mixed_in_fully(digits, oracle, transform):
    guidance = guided_by(transform(held_out(digits), "translate_x", 2), digits, oracle)
    assert (guidance.depth, guidance.weight) == (1, 1.0)
    assert guidance.mixing.weight == 1.0


def test_5_half_blended_rotation_is_mixed_in_half(digits, oracle, transform):
    clean = held_out(digits)
    turned = transform(clean, "rotate", 9)
    half = Split((clean.images() + turned.x) / 2, clean.y)
    assert 0.4 <= guided_by(half, digits, oracle).weight <= 0.7


def test_5_training_images_give_no_guidance(digits, oracle):
    guidance = guided_by(digits.select(slice(100, 100 + SHOTS)), digits, oracle)
    assert guidance.distance <= guidance.null
    assert guidance.weight == 0
    assert not guidance.guided
    # Plain AugMix then.
    assert guidance.mixing.weight is None
    assert guidance.mixing.depth == 3
    assert len(set(guidance.mixing.probabilities)) == 1


# -- 6: black box ----------------------------------------------------------------------------------


def test_6_guidance_needs_predictions_only(digits, oracle, transform):
    failing = transform(held_out(digits), "rotate", 9)
    guidance = guided_by(failing, digits, oracle)  # the oracle raises on everything but predict
    assert guidance.failures == SHOTS
    x = torch.from_numpy(digits.images(slice(0, 8)))
    assert augment.views(x, guidance.mixing, np.random.default_rng(0)).shape == (2, 8, 1, 28, 28)


# -- 7: Pillow -------------------------------------------------------------------------------------


def test_7_operations_are_those_of_pillow(digits):
    x = digits.x[:100]
    tensor = torch.from_numpy(digits.images(slice(0, 100)))
    how = {"resample": Image.Resampling.BILINEAR}
    affine = Image.Transform.AFFINE
    of_pillow = {
        "autocontrast": lambda p, v: ImageOps.autocontrast(p),
        "equalize": lambda p, v: ImageOps.equalize(p),
        "posterize": lambda p, v: ImageOps.posterize(p, int(v)),
        "solarize": lambda p, v: ImageOps.solarize(p, int(v)),
        "contrast": lambda p, v: ImageEnhance.Contrast(p).enhance(v),
        "brightness": lambda p, v: ImageEnhance.Brightness(p).enhance(v),
        "sharpness": lambda p, v: ImageEnhance.Sharpness(p).enhance(v),
        "rotate": lambda p, v: p.rotate(v, **how),
        "shear_x": lambda p, v: p.transform(p.size, affine, (1, v, 0, 0, 1, 0), **how),
        "shear_y": lambda p, v: p.transform(p.size, affine, (1, 0, 0, v, 1, 0), **how),
        "translate_x": lambda p, v: p.transform(p.size, affine, (1, 0, v, 0, 1, 0), **how),
        "translate_y": lambda p, v: p.transform(p.size, affine, (1, 0, 0, 0, 1, v), **how),
    }
    tested = set()
    for variant in augment.variants((1, 28, 28)):
        [value] = augment.strengths([variant], np.array([variant.level]), (1, 28, 28))
        number = np.full(100, augment.NUMBER[variant.operation])
        ours = augment.apply(tensor, number, np.full(100, value)).numpy()[:, 0] * 255
        change = of_pillow[variant.operation]
        theirs = np.stack([np.asarray(change(Image.fromarray(i), value)) for i in x[:, 0]])
        difference = np.abs(ours - theirs)
        if variant.operation in augment.SIGNED:
            assert difference.mean() <= 1, variant
        else:
            assert difference.max() <= 2, variant
        tested.add(variant.operation)
    assert tested == set(augment.OPERATIONS) - {"colour"}


# -- 8 to 10: behaviour ----------------------------------------------------------------------------


def test_8_without_learning_rate_nothing_changes(rotated_task):
    task, rotated, _ = rotated_task()
    result = run(FSGMix(learning_rates=(0.0,), epochs=2, probe=128), task)
    assert result.outcome is Outcome.FIXED
    assert len(result.candidates) == 3
    for name, array in task.model.weights.items():
        assert result.model.weights[name].tobytes() == array.tobytes()
    before, after = (m.predict(rotated).argmax(axis=1) for m in (task.model, result.model))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("rate", [1e-3, 5.0])
def test_9_validation_accuracy_never_falls(rotated_task, rate):
    task, _, _ = rotated_task()
    result = run(FSGMix(learning_rates=(rate,), epochs=2, probe=128), task)
    assert result.validation_accuracy["after"] >= result.validation_accuracy["before"]
    if rate > 1:
        # Such steps destroy the model, hence the original is what is left.
        worst = min(entry["validation_accuracy"] for entry in result.candidates)
        assert worst < result.validation_accuracy["before"]


def test_10_rotated_digits_get_better(rotated_task):
    gains = []
    for seed in range(3):
        task, rotated, clean = rotated_task(seed)
        failures = (task.model.predict(task.repair).argmax(axis=1) != task.repair.y).sum()
        assert failures >= 10
        *_, last = FSGMix(learning_rates=(1e-2,), epochs=5).candidates(task)
        fixed = last.apply(task.model)
        gains.append([fixed.accuracy(s) - task.model.accuracy(s) for s in (rotated, clean)])
    on_rotated, on_clean = np.mean(gains, axis=0)
    assert on_rotated > 0.02
    assert on_clean > -0.01
