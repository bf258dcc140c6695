"""The fidelity checks of the specification, by number."""

import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Outcome
from modelfix_core.fixing import run
from modelfix_core.torch import load
from modelfix_inner import Inner
from modelfix_inner.localisation import Reading, block_scores, hits, route
from modelfix_inner.repair import Marked, Repair
from modelfix_inner.samples import Samples, misclassified
from torch.nn.functional import cross_entropy

ROUTING = {"steps": 40, "rate": 0.009, "decay": 0.005}
QUICK = {
    "probe_samples": 400,
    "probe_epochs": 10,
    "routing_samples": 30,
    "routing_steps": 10,
    "epochs": 4,
    "learning_rate": 5e-3,
}


def frontier(reading, x):
    with torch.no_grad():
        return list(reading.net.activations(x, reading.frontier).values())


def reading_of(parts, position):
    return Reading(parts.net, parts.blocks[position], parts.probes[position])


# -- 1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parts", "residual_parts"])
def test_1_probes_learn_to_read_and_the_network_stays_bit_equal(request, name):
    parts = request.getfixturevalue(name)
    assert parts.net.weights() == {}
    assert min(parts.accuracies) > 0.9
    assert not any(module.training for module in parts.net.modules())
    assert not any(module.training for probe in parts.probes for module in probe.modules())


def test_1_probes_read_what_they_did_not_learn_from(digits, parts):
    x = torch.from_numpy(digits.validation.images())
    values = parts.net.activations(x, [block.tap for block in parts.blocks])
    for block, probe in zip(parts.blocks, parts.probes, strict=True):
        assert np.mean(probe(values[block.tap]).argmax(dim=1).numpy() == digits.validation.y) > 0.85


# -- 2 ------------------------------------------------------------------------------------------


def routed_alone(digits, block, probe, image):
    """One input, as the specification words it: the weights are replaced and the network is run."""
    net = load(digits.model)
    weight = net.tensor(block.layer.weight)
    original = weight.detach().clone()
    target = probe(net.activations(image, [block.tap])[block.tap]).argmax(dim=1)
    routing = torch.ones_like(original)
    for _ in range(ROUTING["steps"]):
        net.set_weights({block.layer.weight: routing * original})
        loss = cross_entropy(probe(net.activations(image, [block.tap])[block.tap]), target)
        (slope,) = torch.autograd.grad(loss, weight)
        step = ROUTING["rate"] * slope + ROUTING["decay"] * routing.sign()
        routing = (routing - step).clamp(0, 1)
    return routing


@pytest.mark.parametrize(
    ("name", "position"), [*(("digits", i) for i in range(4)), ("residual", 0), ("residual", 1)]
)
def test_2_inputs_routed_together_are_those_routed_alone(request, name, position):
    digits = request.getfixturevalue(name)
    parts = request.getfixturevalue("parts" if name == "digits" else "residual_parts")
    reading = reading_of(parts, position)
    together = route(reading, frontier(reading, parts.faulty.x[:6]), **ROUTING)
    assert together.min() >= 0
    assert together.max() <= 1
    assert together.std() > 1e-5
    for i in range(6):
        alone = routed_alone(digits, reading.block, reading.probe, parts.faulty.x[i : i + 1])
        torch.testing.assert_close(together[i], alone, rtol=0, atol=2e-6)
    assert parts.net.weights() == {}


# -- 3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [1, 2, 3])
def test_3_without_gradient_the_decay_alone_is_left(fresh, position):
    reading = reading_of(fresh, position)
    values = frontier(reading, fresh.faulty.x[:5])
    (source,) = values
    source[:, 0] = 0  # a dead channel, or dead input
    routing = route(reading, values, **ROUTING)
    dead = routing[:, :, 0]
    torch.testing.assert_close(dead, torch.full_like(dead, 0.8), rtol=0, atol=1e-5)
    assert (routing - 0.8).abs().max() > 1e-4


# -- 4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(4))
def test_4_nothing_is_marked_where_nothing_moves(parts, position):
    reading = reading_of(parts, position)
    values = frontier(reading, parts.faulty.x[:5])
    assert not hits(route(reading, values, steps=40, rate=0.0, decay=0.0)).any()
    assert hits(route(reading, values, **ROUTING)).any()


@pytest.mark.parametrize("size", [72, 1152, 4096, 2_360_000])
@pytest.mark.parametrize("value", [0.8, 0.1, 1 / 3])
def test_4_equal_values_lie_on_neither_side_of_their_mean(size, value):
    assert not hits(torch.full((2, size), value)).any()


# -- 5 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrupted", range(4))
def test_5_a_corrupted_block_moves_its_score_and_none_before(digits, parts, corrupted):
    def scores(net):
        taps = [block.tap for block in parts.blocks]
        with torch.no_grad():
            readings = []
            for x in (parts.clean.x[:30], parts.faulty.x[:30]):
                values = net.activations(x, taps)
                readings.append([p(values[t]) for p, t in zip(parts.probes, taps, strict=True)])
        return block_scores(*readings)

    before = scores(parts.net)
    name = parts.blocks[corrupted].layer.weight
    changed = load(digits.model.with_weights({name: -digits.model.weights[name]}))
    after = scores(changed)
    assert after[:corrupted] == before[:corrupted]
    assert after[corrupted] != before[corrupted]


def test_5_the_score_is_a_cross_entropy_of_mean_outputs():
    clean, faulty = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0]])
    p, q = clean.softmax(dim=1).mean(dim=0), faulty.softmax(dim=1).mean(dim=0)
    (score,) = block_scores([clean], [faulty])
    assert score == pytest.approx(float(-(q * torch.log(p + 1e-7)).sum()), abs=1e-6)


# -- 6 ------------------------------------------------------------------------------------------


def test_6_only_marked_weights_and_biases_move(digits):
    approach = Inner(**QUICK, mask="topk", neurons=20)
    proposals = list(approach.candidates(digits.task()))
    blamed = proposals[0]
    last = proposals[-1].apply(digits.model).weights
    marked = {name: set() for name in blamed.layer}
    for name, position in zip(blamed.layer, blamed.index, strict=True):
        marked[name].add(int(position))
    assert len(marked) == 3
    for layer in digits.model.layers():
        before, after = digits.model.weights[layer.weight], last[layer.weight]
        moved = set(np.flatnonzero(before.ravel() != after.ravel()))
        assert moved <= marked.get(layer.name, set())
        assert bool(moved) == (layer.name in marked)
        bias = not np.array_equal(digits.model.weights[layer.bias], last[layer.bias])
        assert bias == (layer.name in marked)


# -- 7 ------------------------------------------------------------------------------------------


def test_7_topk_changes_at_most_k_weights_of_each_block(digits):
    proposals = list(Inner(**QUICK, mask="topk", neurons=100).candidates(digits.task()))
    last = proposals[-1].apply(digits.model).weights
    counts = [int((digits.model.weights[n] != last[n]).sum()) for n in last if last[n].ndim > 1]
    assert 0 < max(counts) <= 100


def test_7_topk_of_all_weights_is_a_full_reference_mask(digits):
    def last(**options):
        proposals = list(Inner(**{**QUICK, **options}).candidates(digits.task()))
        share = proposals[1].columns["marked"]
        return share, proposals[-1].apply(digits.model).hash

    share, full = last(mask="reference", routing_samples=100)
    assert np.nanmin(share) == 1
    assert last(mask="topk", neurons=10**6) == (pytest.approx(share, nan_ok=True), full)


# -- 8 ------------------------------------------------------------------------------------------


def test_8_the_loss_falls_on_the_repair_batches(fresh):
    clean = fresh.clean.x[: len(fresh.faulty.y)]
    repair = Repair(fresh.net, fresh.faulty, clean, learning_rate=7e-4)
    readings = [reading_of(fresh, depth) for depth in range(len(fresh.blocks))]
    marked = [Marked(d, r, torch.ones_like(r.weight, dtype=bool)) for d, r in enumerate(readings)]
    losses = [[repair.by_probe(m) for m in marked] for _ in range(3)]
    assert np.mean(losses[2]) < np.mean(losses[0])
    assert losses[2][0] < losses[0][0]


def test_8_the_step_is_that_of_masked_sgd(fresh):
    """A pass of a single batch, written out."""
    block, probe = fresh.blocks[2], fresh.probes[2]
    mask = torch.rand(fresh.net.tensor(block.layer.weight).shape) < 0.5
    faulty, clean = Samples(*(part[:20] for part in fresh.faulty)), fresh.clean.x[:20]
    weight, bias = (fresh.net.tensor(name) for name in block.layer.parameters)
    old = weight.detach().clone(), bias.detach().clone()
    ours, theirs = (
        probe(fresh.net.activations(x, [block.tap])[block.tap]) for x in (faulty.x, clean)
    )
    soft = (theirs.detach() / 3).softmax(dim=1)
    kd = -(soft * (ours / 3).log_softmax(dim=1)).sum(dim=1).mean()
    loss = 0.8 * cross_entropy(ours, faulty.y) + 0.2 * kd
    slopes = torch.autograd.grad(loss, [weight, bias])
    marked = Marked(2, reading_of(fresh, 2), mask)
    Repair(fresh.net, faulty, clean, learning_rate=0.01).by_probe(marked)
    torch.testing.assert_close(weight.detach(), old[0] - 0.01 * slopes[0] * mask)
    torch.testing.assert_close(bias.detach(), old[1] - 0.01 * slopes[1])


@pytest.mark.parametrize("rate", [7e-4, 1.0])
def test_8_the_returned_model_is_never_worse_on_validation(digits, rate):
    result = run(Inner(**{**QUICK, "learning_rate": rate}), digits.task())
    assert result.outcome is Outcome.FIXED
    assert result.validation_accuracy["after"] >= result.validation_accuracy["before"]


# -- 9 ------------------------------------------------------------------------------------------


def few_faults(digits, count):
    """The task with so many misclassified training images, and none to repair."""
    net = load(digits.model)
    wrong = misclassified(net, digits.train, np.arange(len(digits.train)), 10**6)
    kept = np.setdiff1d(np.arange(len(digits.train)), wrong[count:])
    right = digits.model.predict(digits.repair).argmax(axis=1) == digits.repair.y
    return digits.task(train=digits.train.select(kept), repair=digits.repair.select(right))


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("preset", ["default", "study"])
def test_9_few_faults_are_enough(digits, count, preset):
    result = run(Inner(preset, **QUICK), few_faults(digits, count))
    assert result.outcome is Outcome.FIXED
    assert len(result.candidates) > 1


@pytest.mark.parametrize("preset", ["default", "reference", "study"])
def test_9_without_faults_the_original_is_proposed(digits, preset):
    task = few_faults(digits, 0)
    proposals = list(Inner(preset).candidates(task))
    assert proposals == [Candidate(weights={})]
    assert run(Inner(preset), task).model.hash == digits.model.hash
