"""The fidelity checks of the specification, by number."""

import copy
import itertools

import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Outcome, Task
from modelfix_core.fixing import run
from modelfix_core.model import Model
from modelfix_core.torch import export
from modelfix_i_repair import IRepair
from modelfix_i_repair.localisation import masks
from modelfix_i_repair.repair import Samples, gradients, repair
from onnx import helper
from torch import nn

LEARNING_RATE = 3e-4


def plain_gradients(module, parameters, general, specific):
    """The three gradients as the specification words them, each from a pass of its own."""
    with torch.no_grad():
        wrong = module(specific.x).argmax(dim=1) != specific.y
    absolute = module(general.x).abs().sum() / len(general.y)
    faults = nn.functional.cross_entropy(module(specific.x[wrong]), specific.y[wrong])
    both = nn.functional.cross_entropy(
        module(torch.cat([general.x, specific.x])), torch.cat([general.y, specific.y])
    )
    return [torch.autograd.grad(loss, parameters) for loss in (absolute, faults, both)]


def repaired(module, sets, **options):
    module = copy.deepcopy(module)
    options = {"gamma": 1.0, "learning_rate": LEARNING_RATE, "iterations": 20, **options}
    steps = list(repair(module, list(module.parameters()), *sets, **options))
    return module, steps


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_1_without_general_influence_it_is_plain_rmsprop(digits):
    sets = digits.sets()
    ours, _ = repaired(digits.module, sets, gamma=0.0)
    plain = copy.deepcopy(digits.module)
    parameters = list(plain.parameters())
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE, alpha=0.99, eps=1e-8)
    wrong = None
    for _ in range(20):
        found = gradients(plain, parameters, *sets, 256, wrong)
        wrong = found.wrong
        for parameter, gradient in zip(parameters, found.step, strict=True):
            parameter.grad = gradient
        optimiser.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def test_1_plain_rmsprop_in_the_usual_words_agrees_too(digits):
    # Summation in another order changes last bits, so this one is close rather than bit-equal.
    general, specific = sets = digits.sets()
    x, y = torch.cat([general.x, specific.x]), torch.cat([general.y, specific.y])
    ours, _ = repaired(digits.module, sets, gamma=0.0)
    plain = copy.deepcopy(digits.module)
    optimiser = torch.optim.RMSprop(plain.parameters(), lr=LEARNING_RATE)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimiser.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def batchnorm_module():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 10),
        )
        module[1].running_mean.normal_()
        module[1].running_var.uniform_(0.5, 2)
    return module.eval()


def test_2_what_was_never_unlocked_and_every_buffer_stay_bit_equal(digits):
    module = batchnorm_module()
    parameters = list(module.parameters())
    general, _ = digits.sets()
    specific = Samples(general.x[:20], (general.y[:20] + 1) % 10)
    before = state(module)
    ever = [torch.zeros_like(p, dtype=torch.bool) for p in parameters]
    steps = repair(
        module,
        parameters,
        general,
        specific,
        gamma=1.0,
        learning_rate=1e-3,
        iterations=15,
    )
    for _ in range(15):
        found = gradients(module, parameters, general, specific, 256)
        ever = [e | m for e, m in zip(ever, masks(found.specific, found.general, 1.0), strict=True)]
        next(steps)
    after = state(module)
    for name, unlocked in zip(dict(module.named_parameters()), ever, strict=True):
        assert torch.equal(before[name][~unlocked], after[name][~unlocked]), name
    assert any(not unlocked.all() for unlocked in ever)
    assert not torch.equal(before["4.weight"], after["4.weight"])
    for name, _ in module.named_buffers():
        assert torch.equal(before[name], after[name]), name


def test_3_the_first_touch_moves_by_ten_learning_rates(digits):
    sets = digits.sets()
    parameters = list(digits.module.parameters())
    found = gradients(digits.module, parameters, *sets, 256)
    unlocked = masks(found.specific, found.general, 1.0)
    after, _ = repaired(digits.module, sets, iterations=1)
    touched = 0
    for old, new, step, mask in zip(
        parameters, after.parameters(), found.step, unlocked, strict=True
    ):
        clear = mask & (step.abs() > 1e-4)
        moved = (new - old)[clear]
        expected = -10 * LEARNING_RATE * step[clear].sign()
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-7)
        touched += int(clear.sum())
    assert touched > 100


def test_4_a_larger_gamma_unlocks_a_subset(digits):
    parameters = list(digits.module.parameters())
    found = gradients(digits.module, parameters, *digits.sets(), 256)
    flat = [
        torch.cat([mask.flatten() for mask in masks(found.specific, found.general, gamma)])
        for gamma in (0.0, 0.1, 1.0, 100.0)
    ]
    for larger, smaller in itertools.pairwise(flat):
        assert not (smaller & ~larger).any()
    shares = [float(mask.float().mean()) for mask in flat]
    assert shares[0] == 1.0
    # The prototype's shares for its own split; the floor is made of inputs that are always 0.
    np.testing.assert_allclose(shares, [1.0, 0.67, 0.28, 0.21], atol=0.05)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 100.0])
def test_5_disjoint_support_unlocks_only_the_faults_inputs(gamma):
    rng = np.random.default_rng(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.from_numpy(rng.uniform(0.2, 1, (12, 4)).astype(np.float32))
    x[:6, 2:] = 0
    x[6:, :2] = 0
    y = module(x).argmax(dim=1)
    y[6:] = (y[6:] + 1) % 3
    general, specific = Samples(x[:6], y[:6]), Samples(x[6:], y[6:])
    found = gradients(module, list(module.parameters()), general, specific, 256)
    unlocked = masks(found.specific, found.general, gamma)[0]
    assert unlocked[:, 2:].all()
    reached = found.general[0][:, :2] != 0
    assert reached.any()
    assert not unlocked[:, :2][reached].any()


@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("steps", [0, 15])
def test_6_merged_gradients_equal_the_three_separate_ones(digits, batch_size, steps):
    # After some steps part of the specific set is right, so that every kind of row occurs.
    sets = digits.sets()
    module, _ = repaired(digits.module, sets, iterations=steps)
    parameters = list(module.parameters())
    merged = gradients(module, parameters, *sets, batch_size)
    assert merged.wrong.all() == (steps == 0)
    for ours, plain in zip(
        (merged.general, merged.specific, merged.step),
        plain_gradients(module, parameters, *sets),
        strict=True,
    ):
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def with_softmax_head(model):
    """Append a softmax; the mark of the profile keeps the import from cutting it."""
    proto = model.proto()
    output = proto.graph.output[0]
    proto.graph.node.append(
        helper.make_node("Softmax", [output.name], ["probability"], name="head", axis=1)
    )
    output.name = "probability"
    return Model(proto, "with softmax")


def task_of(digits, model, **changes):
    splits = {"repair": digits.repair, "validation": digits.validation, **changes}
    return Task(model=model, **splits)


def test_7_a_softmax_head_is_refused(digits):
    model = with_softmax_head(export(digits.module, (1, 8, 8)))
    result = run(IRepair(), task_of(digits, model))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "logits" in result.reason


def test_7_probabilities_computed_otherwise_are_refused(digits):
    class Normalised(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            positive = self.module(x).sigmoid()
            return positive / positive.sum(dim=1, keepdim=True)

    model = export(Normalised(digits.module).eval(), (1, 8, 8))
    result = run(IRepair(), task_of(digits, model))
    assert result.outcome is Outcome.UNADAPTABLE
    assert "logits" in result.reason


def test_8_small_gamma_fixes_all_and_costs_more_than_large_gamma(digits):
    before = digits.accuracy(digits.module)
    sets = digits.sets(most=20)
    fixed, accuracy = {}, {}
    for gamma in (0.0, 0.1, 1.0, 2.0):
        module, _ = repaired(digits.module, sets, gamma=gamma, iterations=200)
        with torch.no_grad():
            fixed[gamma] = int((module(sets[1].x).argmax(dim=1) == sets[1].y).sum())
        accuracy[gamma] = digits.accuracy(module)
    assert fixed[0.0] == fixed[0.1] == 20
    assert accuracy[0.0] < before
    assert accuracy[0.1] < before
    assert max(fixed[1.0], fixed[2.0]) < 20
    assert min(accuracy[1.0], accuracy[2.0]) > max(accuracy[0.0], accuracy[0.1])


def test_9_an_empty_specific_set_proposes_the_original_after_zero_steps(digits):
    model = export(digits.module, (1, 8, 8))
    right = model.predict(digits.repair).argmax(axis=1) == digits.repair.y
    proposals = list(
        IRepair().candidates(task_of(digits, model, repair=digits.repair.select(right)))
    )
    assert len(proposals) == 1
    assert isinstance(proposals[0], Candidate)
    assert proposals[0].step == 0
    assert dict(proposals[0].weights) == {}


def test_9_a_specific_set_that_is_right_takes_zero_steps(digits):
    general, _ = digits.sets()
    module, steps = repaired(digits.module, (general, general), gamma=0.0)
    assert steps == []
    for a, b in zip(module.parameters(), digits.module.parameters(), strict=True):
        assert torch.equal(a, b)
