"""The fidelity checks of the specification, by number."""

import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Task
from modelfix_core.errors import Unadaptable
from modelfix_core.subjects.architectures import build
from modelfix_core.torch import export, load
from modelfix_testing import layerless_model
from modelfix_vere import VeRe
from modelfix_vere.localisation import faults, intervals, scores, significance
from modelfix_vere.relaxation import bucketed, crown, exact, lower_lines
from modelfix_vere.repair import Aim, fit, read_neuron, write_back
from modelfix_vere.site import find_site
from modelfix_vere.suffix import read_suffix
from modelfix_vere.targets import targets

ONE_LAYER = [((9, 14, 5), ["Relu"]), ((9, 14, 5), ["LeakyRelu"])]
CHAINS = [
    *ONE_LAYER,
    ((9, 14, 5), ["Sigmoid"]),
    ((9, 14, 11, 5), ["Relu", "Relu"]),
    ((9, 14, 11, 5), ["Sigmoid", "LeakyRelu"]),
    ((9, 14, 11, 8, 5), ["Relu", "LeakyRelu", "Relu"]),
    ((9, 7, 6, 8, 6, 5), ["Relu", "Sigmoid", "Relu", "Relu"]),
]


def whole(suffix, hidden, rows, neurons, edges):
    return torch.cat([v for _, v in lower_lines(suffix, hidden, rows, neurons, edges)])


# -- 1 ------------------------------------------------------------------------------------------


def margins_at(suffix, hidden, rows, values):
    """True margins [D, I, ...] when neuron n takes values[n, i, ...] and the others stay."""
    found = torch.empty_like(values)
    for n in range(len(values)):
        flat = values[n].flatten(1)
        moved = hidden[:, None].repeat(1, flat.shape[1], 1)
        moved[..., n] = flat
        found[n] = (suffix(moved) * rows[:, None]).sum(dim=2).view_as(values[n])
    return found


@pytest.mark.parametrize(("widths", "operators"), [((9, 5), []), *CHAINS])
def test_1_lines_lie_below_the_true_margin(suffix_of, problem, widths, operators):
    for seed in range(3):
        suffix = suffix_of(widths, operators, seed)
        hidden, rows, neurons, edges = problem(suffix, seed=seed)
        lines = whole(suffix, hidden, rows, neurons, edges)
        share = torch.rand((20, 1, 1, 1), generator=torch.Generator().manual_seed(seed))
        low, high = (e[:, None].expand(-1, len(hidden), -1) for e in (edges[:, :-1], edges[:, 1:]))
        values = (low + share * (high - low)).movedim(0, -1)
        bound = (lines[..., 0] + share * (lines[..., 1] - lines[..., 0])).movedim(0, -1)
        true = margins_at(suffix, hidden, rows, values)
        assert (true >= bound - 1e-5).all()
        assert (true - bound).max() > 1e-3 or not operators


@pytest.mark.parametrize(("widths", "operators"), ONE_LAYER)
def test_1_lines_are_tight_where_no_unit_is_unstable(suffix_of, problem, widths, operators):
    suffix = suffix_of(widths, operators)
    hidden, rows, neurons, edges = problem(suffix, pieces=40)
    lines = whole(suffix, hidden, rows, neurons, edges)
    at_edges = edges[:, None].expand(-1, len(hidden), -1)
    true = margins_at(suffix, hidden, rows, at_edges)
    (first, bias), (last, _) = suffix.affine
    moved = at_edges - hidden.T[..., None]
    z = (hidden @ first.T + bias)[:, None] + moved[..., None] * first.T[:, None, None]
    unstable = (z[:, :, 1:] * z[:, :, :-1] < 0) & (rows @ last > 0)[:, None]
    tight = ~unstable.any(dim=-1)
    assert 0.3 < tight.double().mean() < 0.99
    for end in (0, 1):
        at = true[:, :, end : end + 40]
        torch.testing.assert_close(lines[..., end][tight], at[tight], rtol=0, atol=1e-5)
        assert (lines[..., end][~tight] <= at[~tight] + 1e-5).all()


# -- 2 ------------------------------------------------------------------------------------------


def line_of_a_box(suffix, row, low, high):
    """CROWN as it is written: the lower line ``a . h + b`` of ``row . g`` on a box, layer by layer.

    Source: Zhang et al., 2018. Intermediate bounds come from the same procedure.
    """
    bounds = []

    def lower(coefficients, constant, depth):
        for position in range(depth - 1, -1, -1):
            leak, (below, above) = suffix.activations[position].leak, bounds[position]
            matrix, offset = suffix.affine[position]
            slopes, constants = [], constant.clone()
            for j, (least, most) in enumerate(zip(below, above, strict=True)):
                chord = most.clamp(min=0) / (most.clamp(min=0) - least.clamp(max=0))
                upper = leak + (1 - leak) * chord
                rise = -(1 - leak) * chord * least.clamp(max=0)
                under = 1.0 if chord > 0.5 else leak
                column = coefficients[:, j]
                slopes.append(torch.where(column >= 0, column * under, column * upper))
                constants += torch.where(column < 0, column * rise, torch.zeros(()))
            coefficients = torch.stack(slopes, dim=1)
            constant = constants + coefficients @ offset
            coefficients = coefficients @ matrix
        return coefficients, constant

    def least(coefficients, constant):
        return (coefficients.clamp(min=0) @ low + coefficients.clamp(max=0) @ high) + constant

    for depth in range(len(suffix.activations)):
        matrix, offset = suffix.affine[depth]
        pair = []
        for sign in (1, -1):
            if depth == 0:
                pair.append(sign * least(sign * matrix, sign * offset))
            else:
                pair.append(sign * least(*lower(sign * matrix, sign * offset, depth)))
        bounds.append(pair)
    matrix, offset = suffix.affine[-1]
    return lower((row @ matrix)[None], (row @ offset)[None], len(suffix.activations))


@pytest.mark.parametrize(("widths", "operators"), [c for c in CHAINS if "Sigmoid" not in c[1]])
def test_2_all_versions_agree_with_crown_on_boxes(suffix_of, problem, widths, operators):
    for seed in range(2):
        suffix = suffix_of(widths, operators, seed)
        hidden, rows, neurons, edges = problem(suffix, inputs=4, pieces=3, seed=seed)
        found = [crown(suffix, hidden, rows, neurons, edges)]
        if len(operators) == 1:
            found.append(bucketed(suffix, hidden, rows, neurons, edges))
        expected = torch.empty_like(found[0])
        for n in range(len(neurons)):
            for i in range(len(hidden)):
                for k in range(3):
                    low, high = hidden[i].clone(), hidden[i].clone()
                    low[n], high[n] = edges[n, k], edges[n, k + 1]
                    slope, start = line_of_a_box(suffix, rows[i], low, high)
                    expected[n, i, k] = torch.stack([slope[0] @ e + start[0] for e in (low, high)])
        for values in found:
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pieces", [1, 4, 10])
@pytest.mark.parametrize("limits", [None, (0.0, 10.0)])
@pytest.mark.parametrize(("widths", "operators"), ONE_LAYER)
def test_2_bucketed_and_dense_versions_agree(suffix_of, problem, widths, operators, pieces, limits):
    for seed in range(5):
        suffix = suffix_of((30, 50, 7), operators, seed)
        with torch.no_grad():
            suffix.affine[0][0][:, 4] = 0  # a neuron that no unit reads
            suffix.affine[0][0][::3, 5] = 0
        hidden, rows, neurons, edges = problem(suffix, seed=seed)
        hidden[:, 6] = 0  # a dead neuron: its interval is a point
        edges = intervals(hidden, pieces, limits=limits)
        fast = bucketed(suffix, hidden, rows, neurons, edges)
        dense = crown(suffix, hidden, rows, neurons, edges)
        torch.testing.assert_close(fast, dense, rtol=0, atol=1e-5)


def test_2_a_single_affine_map_is_exact(suffix_of, problem):
    suffix = suffix_of((9, 5), [])
    hidden, rows, neurons, edges = problem(suffix)
    values = exact(suffix, hidden, rows, neurons, edges)
    true = margins_at(suffix, hidden, rows, edges[:, None].expand(-1, len(hidden), -1))
    torch.testing.assert_close(values[..., 0], true[..., :-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(values[..., 1], true[..., 1:], rtol=0, atol=1e-5)


# -- 3 ------------------------------------------------------------------------------------------


SITES = {
    "square": {},
    "norm": {"norm": True},
    "sigmoid": {"activation": "Sigmoid"},
    "features": {"sizes": (64, 10)},
}


def started(digits, name):
    model = digits.network(**SITES[name])
    site = find_site(model, relaxed=True)
    net = load(model)
    x = torch.from_numpy(digits.repair.images(slice(0, 200)))
    with torch.no_grad():
        held = net.activations(x, [site.source, site.hidden])
    return model, site, net, x, held


def drawn_aim(site, held, index, seed=0):
    values = held[site.hidden][:, index].numpy()
    faulty = np.arange(len(values)) % 5 == 0
    low = np.where(faulty, values + 1, values)
    source = values if site.maker is None else held[site.source].numpy()
    return Aim(source, low, np.where(faulty, low + np.float32(0.5), low), faulty)


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("epochs", [0, 4])
def test_3_the_written_weights_are_the_fitted_neuron(digits, name, epochs):
    model, site, net, x, held = started(digits, name)
    index = 5
    aim = drawn_aim(site, held, index)
    neuron = read_neuron(net, site, index)
    parameters = fit(neuron, aim, np.random.default_rng(0), epochs=epochs)
    write_back(net, site, index, parameters)
    if epochs == 0:
        assert net.weights() == {}
        return
    with torch.no_grad():
        changed = held[site.hidden].clone()
        changed[:, index] = torch.from_numpy(neuron(parameters, aim.source))
        original = load(model)
        expected = original.run({site.hidden: changed}, [model.output_name])[model.output_name]
        logits = net(x)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * scale)
    assert (logits - original(x)).abs().max() > 0.01 * scale
    changes = {n: a != model.weights[n] for n, a in net.weights().items()}
    allowed = {site.reader.weight, site.reader.bias}
    if site.maker is not None:
        allowed |= {site.maker.weight, site.maker.bias}
        for parameter in (site.maker.weight, site.maker.bias):
            assert set(np.flatnonzero(changes[parameter].reshape(64, -1).any(axis=1))) == {index}
    assert changes.keys() == allowed
    assert set(np.flatnonzero(changes[site.reader.weight].any(axis=0))) == {index}


# -- 4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["1", "4"])
def test_4_a_neuron_that_nothing_reads_promises_nothing(digits, layer):
    original = digits.network((64, 64, 64, 10), steps=15)
    site = find_site(original, True, layer)
    weight = original.weights[site.reader.weight].copy()
    weight[:, 7] = 0
    model = original.with_weights({site.reader.weight: weight})
    suffix, found, _, hidden = faults_of(model, site, digits.repair)
    promised = significance(suffix, found, intervals(hidden, 10))
    assert (promised[7] == 0).all()
    assert (promised.amax(dim=1) > 0).sum() > 30
    result = list(
        VeRe("relaxed", layer=site.maker.name, rounds=3, epochs=2).candidates(
            Task(model=model, repair=digits.repair, validation=digits.validation)
        )
    )
    blamed = next(p for p in result if isinstance(p, Localisation))
    assert 7 not in blamed.index
    rounds = [p for p in result if isinstance(p, Evidence) and p.name == "rounds"][-1]
    assert 7 not in rounds.columns["neuron"]


def faults_of(model, site, split, cap=128):
    net = load(model)
    suffix = read_suffix(net, site.suffix)
    with torch.no_grad():
        hidden = net.activations(torch.from_numpy(split.images()), [site.hidden])[site.hidden]
        wrong = suffix(hidden).argmax(dim=1).numpy() != split.y
        wrong = np.flatnonzero(wrong)[:cap]
        labels = torch.tensor(split.y[wrong])
        return suffix, faults(suffix, hidden[wrong], labels), labels, hidden


# -- 5 ------------------------------------------------------------------------------------------


def planted(model, site, neuron, seed):
    """Replace a neuron by noise that pushes class 5."""
    rng = np.random.default_rng(seed)
    maker, reader = site.maker, site.reader
    changed = {n: model.weights[n].copy() for n in (*maker.parameters, reader.weight)}
    changed[maker.weight][neuron] = rng.normal(0, 1, 64)
    changed[maker.bias][neuron] = 0.5
    classifier = model.weights[model.layers("dense")[-1].weight]
    changed[reader.weight][:, neuron] = 2 * (classifier[5] - classifier.mean(axis=0))
    return model.with_weights(changed)


def test_5_planted_faults_are_found_and_repaired(digits):
    cases = 0
    for seed in range(3):
        healthy = digits.network((64, 64, 64, 10), seed=seed)
        site = find_site(healthy)
        for neuron in (3, 20, 45):
            model = planted(healthy, site, neuron, 100 * seed + neuron)
            before = model.accuracy(digits.repair)
            if before > healthy.accuracy(digits.repair) - 0.02:
                continue
            suffix, found, _, hidden = faults_of(model, site, digits.repair)
            ranking = scores(significance(suffix, found, intervals(hidden, 10)))
            task = Task(model=model, repair=digits.repair, validation=digits.validation)
            proposals = list(VeRe(rounds=1).candidates(task))
            after = [p for p in proposals if isinstance(p, Candidate)][-1].apply(model)
            assert int((ranking > ranking[neuron]).sum()) < 2
            assert after.accuracy(digits.repair) > before
            cases += 1
    assert cases >= 6


# -- 6 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("sizes", [(64, 64, 64, 10), (64, 40, 30, 20, 10)])
def test_6_every_value_of_an_ideal_target_makes_the_label_win(digits, strict, sizes):
    model = digits.network(sizes, steps=25)
    site = find_site(model, True, "1")
    suffix, found, labels, hidden = faults_of(model, site, digits.repair)
    edges = intervals(hidden, 10)
    ranking = scores(significance(suffix, found, edges))
    proved = 0
    for neuron in ranking.argsort(descending=True)[:3].tolist():
        aimed = targets(suffix, found, labels, neuron, edges[neuron], strict)
        proved += int(aimed.ideal.sum())
        share = torch.linspace(0, 1, 20)
        values = aimed.low[:, None] + share * (aimed.high - aimed.low)[:, None]
        moved = found.hidden[:, None].repeat(1, 20, 1)
        moved[..., neuron] = values
        logits = suffix(moved)
        own = logits.gather(2, labels[:, None, None].expand(-1, 20, 1))[..., 0]
        others = logits.scatter(2, labels[:, None, None].expand(-1, 20, 1), -torch.inf)
        rival = others.amax(dim=2) if strict else own - (logits * found.rows[:, None]).sum(dim=2)
        assert (own > rival)[aimed.ideal].all()
        assert (aimed.low[~aimed.ideal] == aimed.high[~aimed.ideal]).all()
    assert proved > 10


# -- 7 ------------------------------------------------------------------------------------------


def test_7_no_candidate_has_fewer_right_inputs_than_the_original(digits):
    model = digits.network((64, 64, 64, 10), steps=25)
    task = Task(model=model, repair=digits.repair, validation=digits.validation, seed=3)
    before = int((model.predict(digits.repair).argmax(axis=1) == digits.repair.y).sum())
    for preset in ("default", "paper"):
        proposals = list(VeRe(preset, rounds=6).candidates(task))
        reached = [p.values["right"] for p in proposals if isinstance(p, Candidate)]
        assert reached == sorted(set(reached))
        assert reached[0] > before
        for candidate in (p for p in proposals if isinstance(p, Candidate)):
            right = candidate.apply(model).predict(digits.repair).argmax(axis=1) == digits.repair.y
            assert int(right.sum()) == candidate.values["right"]


def test_7_without_a_faulty_input_the_model_comes_back_bit_equal(digits):
    model = digits.network((64, 64, 64, 10))
    right = model.predict(digits.repair).argmax(axis=1) == digits.repair.y
    task = Task(model=model, repair=digits.repair.select(right), validation=digits.validation)
    proposals = list(VeRe().candidates(task))
    assert [dict(p.weights) for p in proposals] == [{}]
    assert proposals[0].apply(model).hash == model.hash


# -- 8 ------------------------------------------------------------------------------------------


def test_8_the_rule_of_the_study(dense_model):
    for widths, reason in (
        ((144, 120, 84, 10), r"no square hidden fully-connected layer.*144 -> 120 -> 84 -> 10"),
        ((512, 10), "no hidden fully-connected layer"),
        ((512, 256, 10), "no square"),
    ):
        with pytest.raises(Unadaptable, match=reason):
            find_site(dense_model(*widths))
    assert find_site(dense_model(512, 512, 512, 10)).maker.name == "fc1"
    assert find_site(dense_model(100, 512, 512, 512, 10)).maker.name == "fc2"
    assert find_site(dense_model(512, 512, 10)).maker.name == "fc1"
    assert find_site(dense_model(144, 120, 84, 10), relaxed=True).maker.name == "fc1"
    assert find_site(dense_model(20, 512, 10), relaxed=True).maker.name == "fc1"
    assert find_site(dense_model(512, 10), relaxed=True).maker is None


@pytest.mark.parametrize(
    ("name", "options", "shape", "reason"),
    [
        ("lenet5", {"channels": 1}, (1, 28, 28), "144 -> 120 -> 84 -> 10"),
        ("resnet18", {"channels": 3}, (3, 32, 32), "no hidden"),
        ("densenet", {"channels": 3}, (3, 32, 32), "no hidden"),
        ("vgg16", {"channels": 3}, (3, 32, 32), None),
    ],
)
def test_8_on_the_architectures_of_the_study(name, options, shape, reason):
    with torch.random.fork_rng(devices=[]):
        model = export(build(name, 10, **options).eval(), shape)
    task = Task(model=model, repair=None, validation=None)
    VeRe("relaxed").check(task)
    if reason is None:
        VeRe().check(task)
        return
    for preset in ("default", "paper", "study"):
        with pytest.raises(Unadaptable, match=reason):
            VeRe(preset).check(task)


def test_8_no_dense_layer_at_all():
    for relaxed in (False, True):
        with pytest.raises(Unadaptable, match="does not end with a dense layer"):
            find_site(layerless_model((1, 4, 4), 3), relaxed)


def test_8_an_activation_without_a_relaxation(dense_model):
    model = dense_model(16, 16, 16, 5, activation="Tanh")
    with pytest.raises(Unadaptable, match="Tanh"):
        find_site(model)
    site = find_site(model, relaxed=True)
    assert site.maker is None
    assert site.reader.name == "fc3"
