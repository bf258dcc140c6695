"""The fidelity checks of the approach: objective, editor and what they lead to."""

import math

import numpy as np
import pytest
import torch
from modelfix_core import Task
from modelfix_core.torch import load
from modelfix_core.torch.training import FineTuning, Supervised, Training
from modelfix_editable_training import EditableTraining
from modelfix_editable_training.editor import Halves, edit_loss
from modelfix_editable_training.lesson import Editing, Pool, RandomLabelPool
from modelfix_editable_training.run import BETA, make_editor
from torch.nn import functional

RECIPE = FineTuning(
    epochs=1, learning_rate=1e-3, optimizer="adam", weight_decay=0.0, schedule="constant",
    patience=None,
)  # fmt: skip


def editor_of(model, layer, double=True, **changes):
    net = load(model)
    net = net.double() if double else net
    config = EditableTraining(editable=(layer,), **changes).config
    return make_editor(net, (layer,), config)


def lesson_of(editor, split, pool=None, recipe=RECIPE, **changes):
    return Editing(editor, split, recipe, pool or Pool(), **changes)


def dense(model, position):
    return model.layers("dense")[position].name


def naive_loss(net, layer, x, y, pair, config):
    """The step as its paper's code does it: whole passes of a copied model for every edit step."""

    def run(weights, images):
        paths = {names[n]: w for n, w in weights.items()}
        return torch.func.functional_call(net, paths, (images,))

    names = net.parameter_names
    beta = getattr(net, BETA)
    logits = net.train()(x)
    net.eval()
    weights = {n: net.tensor(n) for n in net.model.layer(layer).parameters}
    moments = {}
    for step in range(config["steps"] + 1):
        z = run(weights, pair[0])
        others = z.clone()
        others[0, pair[1][0]] = -torch.inf
        loss = torch.relu(others.max() - z[0, pair[1][0]])
        if loss.item() <= 0 or step == config["steps"]:
            break
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, weight), g in zip(list(weights.items()), found, strict=True):
            square = g**2 if step == 0 else beta * moments[name] + (1 - beta) * g**2
            moments[name] = square
            weights[name] = weight - config["alpha"] * g / torch.sqrt(square + config["epsilon"])
    after = run(weights, x)
    target = functional.softmax(logits, dim=1).detach()
    drift = -(target * functional.log_softmax(after, dim=1)).sum(dim=1).mean()
    base = functional.cross_entropy(logits, y)
    return base + config["locality"] * drift + config["edit"] * loss, step


def batch(digits, size=24, dtype=torch.float64):
    x = torch.from_numpy(digits.images(slice(0, size))).to(dtype)
    return x, torch.from_numpy(digits.y[:size])


def gradients(loss, net):
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named, found, strict=True)
    }


@pytest.mark.parametrize("position", [0, 1])
def test_1_cached_step_equals_whole_passes(cnn, digits, position):
    layer = dense(cnn, position)
    settings = {"steps": 6, "alpha": 0.02, "epsilon": 1e-6, "locality": 0.3, "edit": 0.2}
    editor = editor_of(cnn, layer, alpha=0.02, steps=6)
    lesson = lesson_of(editor, digits, locality=0.3, edit=0.2)
    x, y = batch(digits)
    net = editor.halves.net
    assert editor.halves.cut != net.model.input_name
    wanted = net(x[:1]).argmin(dim=1)
    expected, steps = naive_loss(net, layer, x, y, (x[:1], wanted), settings)
    assert steps >= 2
    want = gradients(expected, net)
    net.train()
    loss, _ = lesson.loss(x, y, (x[:1], wanted))
    got = gradients(loss, net)
    assert float(loss) == pytest.approx(float(expected), abs=1e-9)
    for name, gradient in want.items():
        assert torch.allclose(got[name], gradient, rtol=0, atol=1e-9), name
    assert want[BETA] != 0


def test_2_edits_are_out_of_place(cnn, digits):
    editor = editor_of(cnn, dense(cnn, 1), alpha=0.02)
    net = editor.halves.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, _ = batch(digits, 1)
    edit = editor.edit(editor.halves.prefix(x), net(x).argmin(dim=1))
    assert edit.steps > 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert set(edit.weights) == set(cnn.layer(dense(cnn, 1)).parameters)
    assert all(not torch.equal(w, net.tensor(n)) for n, w in edit.weights.items())


def test_3_a_right_image_needs_no_step(cnn, digits):
    editor = editor_of(cnn, dense(cnn, 1))
    x, _ = batch(digits, 1)
    edit = editor.edit(editor.halves.prefix(x), editor.halves.net(x).argmax(dim=1))
    assert (edit.steps, edit.success, float(edit.loss)) == (0, True, 0.0)
    assert all(edit.weights[n] is editor.halves.net.tensor(n) for n in edit.weights)


def test_4_first_step(cnn, digits):
    editor = editor_of(cnn, dense(cnn, 1), alpha=0.01, steps=1)
    net = editor.halves.net
    x, _ = batch(digits, 1)
    wanted = net(x).argmin(dim=1)
    loss = edit_loss(net(x), wanted)
    weights = editor.halves.weights
    found = torch.autograd.grad(loss, list(weights.values()))
    edit = editor.edit(editor.halves.prefix(x), wanted)
    for (name, weight), g in zip(weights.items(), found, strict=True):
        moved = (edit.weights[name] - weight).abs()
        assert (moved <= 0.01).all()
        expected = 0.01 * g.abs() / torch.sqrt(g**2 + 1e-6)
        assert torch.allclose(moved, expected, atol=1e-12)


def test_5_edit_loss_is_the_gap():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 7, generator=rng).round(decimals=1)  # with ties
    y = torch.randint(7, (1000,), generator=rng)
    each = torch.stack([edit_loss(z[None], t[None]) for z, t in zip(logits, y, strict=True)])
    wanted = logits.gather(1, y[:, None]).squeeze(1)
    attained = wanted == logits.amax(dim=1)
    assert attained.any()
    assert torch.equal(each == 0, attained)
    assert torch.equal(each[~attained], (logits.amax(dim=1) - wanted)[~attained])


def test_6_without_a_step_the_drift_is_stationary(cnn, digits):
    editor = editor_of(cnn, dense(cnn, 1))
    lesson = lesson_of(editor, digits, locality=1.0, edit=1.0)
    net = editor.halves.net
    x, y = batch(digits)
    net.train()
    loss, _ = lesson.loss(x, y, (x[:1], net(x[:1]).argmax(dim=1)))
    got = gradients(loss, net)
    base, _ = lesson.loss(x, y, None)
    for name, gradient in gradients(base, net).items():
        assert torch.allclose(got[name], gradient, rtol=0, atol=1e-10), name


def test_7_without_the_edit_terms_it_is_plain_training(cnn, digits):
    split = digits.select(slice(0, 512))
    editor = editor_of(cnn, dense(cnn, 1), double=False)
    net = editor.halves.net
    Training(net, lesson_of(editor, split, locality=0.0, edit=0.0), RECIPE, seed=3).epoch(1)
    plain = load(cnn)
    Training(plain, Supervised(plain, split, RECIPE), RECIPE, seed=3).epoch(1)
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, net.tensors[name]), name
    assert float(getattr(net, BETA)) == 0.5


@pytest.mark.parametrize("first_order", [False, True])
def test_8_second_derivatives_reach_the_prefix(cnn, digits, first_order):
    editor = editor_of(cnn, dense(cnn, 1), alpha=0.05, steps=4)
    net = editor.halves.net
    lesson = lesson_of(editor, digits, locality=1.0, edit=1.0, first_order=first_order)
    x, y = batch(digits)
    wanted = net(x[:1]).argmin(dim=1)
    weight = net.tensor(cnn.layers("conv")[0].weight)
    rng = torch.Generator().manual_seed(1)
    direction = torch.randn(weight.shape, generator=rng, dtype=torch.float64)

    def value():
        net.train()
        return lesson.loss(x, y, (x[:1], wanted))[0]

    slope = float((torch.autograd.grad(value(), weight)[0] * direction).sum())
    width, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * width * direction
        # The drift's target is a constant of the objective, so it stays that of the centre.
        ends.append(float(_with_target(lesson, x, y, wanted, sign * width, direction, weight)))
        with torch.no_grad():
            weight -= sign * width * direction
    difference = (ends[0] - ends[1]) / (2 * width)
    close = math.isclose(slope, difference, rel_tol=1e-5)
    assert close is not first_order


def _with_target(lesson, x, y, wanted, moved, direction, weight):
    """The objective at the moved weights with the drift's target of the centre."""
    net = lesson.net
    with torch.no_grad():
        weight -= moved * direction
        target = functional.softmax(net.train()(x), dim=1)
        weight += moved * direction
    halves = lesson.editor.halves
    h = halves.prefix(x)
    net.eval()
    edit = lesson.editor.edit(halves.prefix(x[:1]), wanted)
    after = functional.log_softmax(halves.suffix(h, edit.weights), dim=1)
    drift = -(target * after).sum(dim=1).mean()
    return functional.cross_entropy(halves.suffix(h), y) + drift + edit.loss


def test_9_an_impossible_edit_fails_after_all_steps(mlp, digits):
    last = mlp.layers("dense")[-1]
    weights = {
        last.weight: np.zeros_like(mlp.weights[last.weight]),
        last.bias: np.eye(10, dtype=np.float32)[2],
    }
    editor = editor_of(mlp.with_weights(weights), dense(mlp, 1), steps=5)
    x, _ = batch(digits, 1)
    edit = editor.edit(editor.halves.prefix(x), torch.tensor([4]))
    assert (edit.success, edit.steps) == (False, 5)
    for name, weight in edit.weights.items():
        assert torch.equal(weight, editor.halves.net.tensor(name))


def _trained(mlp, digits, weight, seed):
    """Train with edits to random labels; return drawdown, success rate and steps on test images."""
    editor = editor_of(mlp, dense(mlp, 1), double=False, alpha=1e-2)
    net = editor.halves.net
    train, test = digits.select(slice(0, 900)), digits.select(slice(900, None))
    recipe = FineTuning(
        epochs=15, learning_rate=1e-3, optimizer="adam", weight_decay=0.0, schedule="constant",
        patience=None, batch_size=64, clip=10.0,
    )  # fmt: skip
    lesson = lesson_of(editor, train, RandomLabelPool(10), recipe, locality=weight, edit=weight)
    training = Training(net, lesson, recipe, seed=seed)
    for number in range(1, 16):
        training.epoch(number)
    x, y = torch.from_numpy(test.images()), torch.from_numpy(test.y)
    rng = np.random.default_rng(seed)

    def error(weights=None):
        with torch.no_grad():
            return float(
                (editor.halves.suffix(editor.halves.prefix(x), weights).argmax(1) != y)
                .float()
                .mean()
            )

    before, rises, successes = error(), [], []
    for place in rng.choice(len(test), 60, replace=False):
        h = editor.halves.prefix(x[place : place + 1])
        edit = editor.edit(h, torch.tensor([int(rng.integers(10))]), graph=False)
        rises.append(error(edit.weights) - before)
        successes.append(edit.success)
    return np.mean(rises), np.mean(successes)


def test_10_edits_do_less_harm_after_the_training(mlp, digits):
    plain, _ = _trained(mlp, digits, 0.0, 0)
    edited, success = _trained(mlp, digits, 1.0, 0)
    assert edited < 0.5 * plain
    assert success > 0.9


def test_pool_holds_the_mispredicted_and_is_filled_up(cnn, digits):
    split = digits.select(slice(0, 300))
    editor = editor_of(cnn, dense(cnn, 1), double=False)
    net = editor.halves.net
    lesson = lesson_of(editor, split)
    pool = lesson.pool
    order = np.arange(200)
    pool.begin(net, lesson.feed, order)
    with torch.no_grad():
        logits = net(torch.from_numpy(split.images(slice(0, 200))))
    wrong = logits.argmax(dim=1).numpy() != split.y[:200]
    np.testing.assert_array_equal(pool.margins[:200] < 0, wrong)
    assert np.isinf(pool.margins[200:]).all()
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = pool.draw(rng)
        assert int(net(x).argmax(dim=1)) != int(y)
    # All but five are right now: the 64 smallest margins are drawn.
    margins = torch.arange(200.0) + 1
    margins[:5] = -1
    pool.margins[:200] = margins.numpy()
    drawn = {int(np.flatnonzero((split.images() == pool.draw(rng)[0].numpy()).all((1, 2, 3)))[0])
             for _ in range(2000)}  # fmt: skip
    assert drawn <= set(range(64))
    assert len(drawn) > 50


def test_halves_agree_with_the_whole(cnn, digits):
    x, _ = batch(digits)
    for position in (0, 1, 2):
        halves = Halves(load(cnn).double(), (dense(cnn, position),))
        assert torch.equal(halves.suffix(halves.prefix(x)), halves.net(x))
        assert halves.pure


def test_best_validation_is_proposed_and_repairs(mlp, digits):
    """An untrained model learns its classes from the labels and the edits."""
    task = Task(
        model=mlp,
        train=digits.select(slice(0, 900)),
        validation=digits.select(slice(900, 1200)),
        repair=digits.select(slice(1200, 1500)),
    )
    approach = EditableTraining(epochs=12, learning_rates=(1e-3,), batch_size=64)
    candidates = list(approach.candidates(task))
    assert candidates[0].weights == {}
    assert candidates[-1].validation_accuracy > mlp.accuracy(task.validation) + 0.3
    assert {"drawdown", "edit_success", "edit_steps", "loss"} <= candidates[-1].values.keys()
