import foolbox
import numpy as np
import pytest
import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_metrics.adversary import Target
from modelfix_metrics.attacks import Attack, Sample, random_starts


def centred(weight):
    """The bias with which all classes are equally likely at grey images."""
    return -0.5 * np.sum(weight, axis=1)


@pytest.fixture
def linear_problem(linear):
    """300 inputs of a linear model with three classes, labelled by it."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4))
    model = linear(weight, centred(weight))
    x = rng.uniform(0.3, 0.7, (300, 1, 2, 2)).astype(np.float32)
    return model, weight, Split(x, model.predict(x).argmax(axis=1).astype(np.int64))


def run(model, split, attack, seed=0, **options):
    sample = Sample.draw(np.ones(len(split), dtype=bool), seed, len(split))
    found = Target(model, **options).attack(attack, split, sample.ranks, sample.order, seed)
    wrong = np.empty(len(split), dtype=bool)
    wrong[sample.positions] = found.wrong
    return wrong, found


@pytest.mark.parametrize("metric", ["asr", "asr_margin"])
@pytest.mark.parametrize("preset", ["pgd", "fast-gradient"])
def test_two_classes_of_a_linear_model_follow_the_closed_form(linear, metric, preset):
    """Every pixel goes towards the other class until epsilon, or until the steps are used up."""
    epsilon, seed, order = 0.04, 0, np.arange(300)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 4))
    model = linear(weight, centred(weight))
    x = rng.uniform(0.3, 0.7, (300, 1, 2, 2)).astype(np.float32)
    logits = model.predict(x)
    y = logits.argmax(axis=1).astype(np.int64)
    towards = weight[1 - y] - weight[y]
    starts = random_starts(order, (4,), seed) if preset == "pgd" else np.zeros((300, 4))
    steps = 40 / 30 if preset == "pgd" else 1
    moved = epsilon * np.minimum(1, starts * np.sign(towards) + steps)
    distance = (moved * np.abs(towards)).sum(axis=1) - np.abs(logits[:, 0] - logits[:, 1])
    clear = np.abs(distance) > 1e-5
    assert 0.1 < np.mean(distance > 0) < 0.9
    found = Target(model).attack(Attack(metric, epsilon, preset), Split(x, y), order, order, seed)
    assert np.array_equal(found.wrong[clear], (distance > 0)[clear])
    assert found.calls == 300 * (41 if preset == "pgd" else 2)


@pytest.mark.parametrize("preset", ["pgd", "fast-gradient"])
def test_without_margin_it_is_foolbox_own_attack(linear_problem, preset, monkeypatch):
    model, _, split = linear_problem
    starts = np.random.default_rng(5).uniform(-1, 1, split.x.shape).astype(np.float32)
    monkeypatch.setattr(
        "modelfix_metrics.adversary.random_starts", lambda ranks, *_: starts[: len(ranks)]
    )
    monkeypatch.setattr("modelfix_metrics.adversary.BATCH", len(split))
    order = np.arange(len(split))
    found = Target(model).attack(Attack("asr", 0.08, preset), split, order, order, 0)
    own = {"pgd": foolbox.attacks.LinfPGD, "fast-gradient": foolbox.attacks.LinfFastGradientAttack}
    attack = own[preset]()
    monkeypatch.setattr(
        attack, "get_random_start", lambda x0, epsilon: x0 + epsilon * torch.from_numpy(starts)
    )
    seen = foolbox.PyTorchModel(Target(model).net, bounds=(0, 1), device="cpu")
    _, _, success = attack(
        seen, torch.from_numpy(split.x), torch.from_numpy(split.y), epsilons=0.08
    )
    assert 0.05 < success.float().mean() < 0.95
    assert np.array_equal(found.wrong, success.numpy())


def test_epsilon_zero_flips_nothing(linear_problem):
    model, _, split = linear_problem
    for metric in ("asr", "asr_margin", "asr_study"):
        wrong, _ = run(model, split, Attack(metric, 0.0))
        assert not wrong.any()


def test_epsilon_zero_leaves_what_was_wrong(linear_problem):
    model, _, split = linear_problem
    y = split.y.copy()
    y[:50] = (y[:50] + 1) % 3
    wrong, _ = run(model, Split(split.x, y), Attack("asr", 0.0))
    assert wrong.sum() == 50
    assert wrong[:50].all()


def test_a_larger_epsilon_flips_more(linear_problem):
    model, _, split = linear_problem
    rates = [run(model, split, Attack("asr", e))[0].mean() for e in (0.0, 0.05, 0.1, 0.3)]
    assert rates == sorted(rates)
    assert rates[0] < rates[1] < rates[3]


def test_the_same_seed_gives_the_same_result_and_leaves_global_state(linear_problem):
    model, _, split = linear_problem
    target, attack, order = Target(model), Attack("asr", 0.05), np.arange(len(split))
    state = torch.get_rng_state()
    first, second = (target.attack(attack, split, order, order, 3) for _ in range(2))
    assert 0 < first.wrong.mean() < 1
    assert np.array_equal(first.wrong, second.wrong)
    assert torch.equal(state, torch.get_rng_state())


def test_the_margin_uncovers_masked_gradients(linear, linear_problem):
    """Larger logits make the same decisions but saturate float32 cross entropy."""
    model, weight, split = linear_problem
    loud = linear(weight * 3000, centred(weight) * 3000)
    plain, quiet = run(model, split, Attack("asr", 0.1))
    masked, found = run(loud, split, Attack("asr", 0.1))
    margin, clear = run(loud, split, Attack("asr_margin", 0.1))
    assert masked.mean() < plain.mean() - 0.1
    assert margin.mean() >= plain.mean()
    assert found.zero_gradient.mean() > 0.3
    assert not quiet.zero_gradient.any()
    assert not clear.zero_gradient.any()


def test_probabilities_are_attacked_through_their_logarithm(linear, linear_problem):
    model, weight, split = linear_problem
    # The identity after the softmax keeps it from being cut.
    soft = linear(
        weight, centred(weight), after=[("Softmax", None, False), ("Identity", None, False)]
    )
    assert np.allclose(soft.predict(split).sum(axis=1), 1, atol=1e-5)
    for metric in ("asr", "asr_margin", "asr_study"):
        plain, _ = run(model, split, Attack(metric, 0.1))
        through, _ = run(soft, split, Attack(metric, 0.1), probabilities=True)
        assert np.mean(plain != through) < 0.02


def test_the_study_attacks_in_the_networks_input_space(linear):
    """Epsilon after a division by 0.25 is a quarter of it in pixels."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 4))
    steps = [("Sub", 0.5, False), ("Div", 0.25, False)]
    model = linear(weight, before=steps)
    x = rng.uniform(0, 1, (300, 1, 2, 2)).astype(np.float32)
    x[:2] = [[[[0, 0], [0, 0]]], [[[1, 1], [1, 1]]]]  # the bounds of the selected inputs
    split = Split(x, model.predict(x).argmax(axis=1).astype(np.int64))
    study, _ = run(model, split, Attack("asr_study", 0.4))
    pixel, _ = run(model, split, Attack("asr", 0.1))
    other, _ = run(model, split, Attack("asr", 0.4))
    assert np.mean(study != pixel) < 0.02
    assert other.mean() > study.mean() + 0.1


def test_bounds_of_the_study_are_those_of_the_selected_inputs(linear):
    model = linear([[1, 1, 1, 1], [0, 0, 0, 0]], bias=[0, 2.5])
    x = np.full((20, 1, 2, 2), 0.6, dtype=np.float32)
    x[10:] = 0.62
    split = Split(x, np.ones(20, dtype=np.int64))
    free, _ = run(model, split, Attack("asr", 0.3))
    bounded, _ = run(model, split, Attack("asr_study", 0.3))
    assert free.all()
    assert not bounded.any()  # 4 * 0.62 is below 2.5


def test_models_without_gradients_are_told_apart(linear):
    hard = linear(np.eye(3, 4), after=[("Hardmax", None, False)])  # unknown to the bridge
    with pytest.raises(Unadaptable, match="no_gradients"):
        Target(hard)


def test_gradients_of_zero_are_counted(linear):
    steps = linear(np.eye(3, 4), after=[("Floor", None, False)])
    x = np.random.default_rng(0).random((5, 1, 2, 2), dtype=np.float32)
    order = np.arange(5)
    found = Target(steps).attack(
        Attack("asr", 0.1), Split(x, np.zeros(5, dtype=np.int64)), order, order, 0
    )
    assert found.zero_gradient.all()


def test_unknown_devices_are_named(linear):
    with pytest.raises(ModelfixError, match="device 'abacus'"):
        Target(linear(np.eye(3, 4)), "abacus")


def test_large_images_come_in_small_batches(linear):
    target = Target(linear(np.zeros((2, 4))))
    small = target.batch
    assert small > 1
    target.model = type("Large", (), {"input_shape": (3, 4000, 4000)})()
    assert target.batch == 1


def test_results_do_not_depend_on_the_number_of_threads(linear_problem, monkeypatch):
    model, _, split = linear_problem
    monkeypatch.setattr("modelfix_metrics.adversary.BATCH", 40)
    threads = torch.get_num_threads()
    seen = []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            seen.append(run(model, split, Attack("asr", 0.06))[1])
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(seen[0].wrong, seen[1].wrong)
    assert seen[0].calls == seen[1].calls == 41 * len(split)
