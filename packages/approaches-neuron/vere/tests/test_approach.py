import numpy as np
import pytest
import torch
from modelfix_core.approach import Candidate, Evidence, Localisation, Outcome, Task
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.torch import export, load
from modelfix_vere import VeRe
from modelfix_vere.localisation import intervals, scores
from modelfix_vere.relaxation import crown, lower_lines
from modelfix_vere.repair import Aim, Neuron, fit
from modelfix_vere.site import find_site, trailing
from modelfix_vere.suffix import Activation, read_suffix
from torch import nn

SQUARE = (64, 64, 64, 10)


def task_of(digits, model, **changes):
    fields = {"model": model, "repair": digits.repair, "validation": digits.validation}
    return Task(**(fields | changes))


# -- what it repairs ---------------------------------------------------------------------------


def test_a_square_layer_trained_on_real_images_is_repaired(digits):
    model = digits.network(SQUARE, steps=30)
    result = run(VeRe(), task_of(digits, model))
    assert result.outcome is Outcome.FIXED, result.reason
    assert result.model.accuracy(digits.repair) > model.accuracy(digits.repair)
    claimed = result.candidates[result.best]["validation_accuracy"]
    assert claimed == pytest.approx(result.validation_accuracy["after"], abs=1e-9)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((64, 40, 10), {}),
        ((64, 48, 32, 10), {}),
        ((64, 40, 30, 20, 10), {"layer": "1"}),
        ((64, 48, 32, 10), {"activation": "Sigmoid", "steps": 250}),
        ((64, 48, 32, 10), {"activation": "LeakyReLU"}),
        ((64, 48, 32, 10), {"norm": True, "steps": 15}),
        ((64, 10), {"steps": 60}),
    ],
)
def test_every_kind_of_chain_is_repaired(digits, sizes, options):
    layer = options.pop("layer", None)
    model = digits.network(sizes, **({"steps": 30} | options))
    result = run(VeRe("relaxed", layer=layer, rounds=10), task_of(digits, model))
    assert result.outcome is Outcome.FIXED, result.reason
    assert result.best is not None
    assert result.model.hash != model.hash
    assert result.model.accuracy(digits.repair) > model.accuracy(digits.repair)


def test_features_before_a_lone_classifier_are_blamed_by_the_weights_that_carry_them(digits):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
        )
    optimiser = torch.optim.Adam(module.parameters(), 1e-2)
    x, y = torch.from_numpy(digits.train.images()), torch.tensor(digits.train.y)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimiser.step()
    model = export(module.eval(), (1, 8, 8))
    proposals = list(VeRe("relaxed", rounds=5).candidates(task_of(digits, model)))
    blamed = proposals[0]
    assert isinstance(blamed, Localisation)
    assert blamed.kind == "weight"
    columns = blamed.index.reshape(-1, 10) % 12
    assert (columns == columns[:, :1]).all()
    last = [p for p in proposals if isinstance(p, Candidate)][-1]
    assert set(last.weights) == {"4.weight", "4.bias"}


# -- what it proposes --------------------------------------------------------------------------


def test_localisation_ranks_the_neurons_of_the_repaired_layer(digits):
    model = digits.network(SQUARE, steps=30)
    proposals = list(VeRe(rounds=2).candidates(task_of(digits, model)))
    blamed = proposals[0]
    assert isinstance(blamed, Localisation)
    assert (blamed.kind, set(blamed.layer)) == ("neuron", {"1"})
    assert (np.diff(blamed.score) <= 0).all()
    assert blamed.score[-1] > 0
    rounds = [p for p in proposals if isinstance(p, Evidence) and p.name == "rounds"][-1].columns
    assert rounds["neuron"][0] == blamed.index[0]
    assert list(rounds["round"]) == [1, 2]


def test_targets_are_shown_and_proved_ones_hold_in_the_model(digits):
    model = digits.network(SQUARE, steps=30)
    proposals = list(VeRe(rounds=3, cap=20).candidates(task_of(digits, model)))
    shown = [p for p in proposals if isinstance(p, Evidence) and p.name == "targets"][-1].columns
    first = np.flatnonzero(shown["round"] == 1)
    assert len(first) == 20
    assert shown["proved"][first].any()
    net, site = load(model), find_site(model)
    for row in first[shown["proved"][first]]:
        image = digits.repair.images(slice(shown["sample"][row], shown["sample"][row] + 1))
        with torch.no_grad():
            hidden = net.activations(torch.from_numpy(image), [site.hidden])[site.hidden]
            assert float(hidden[0, shown["neuron"][row]]) == pytest.approx(shown["value"][row])
            before = net(torch.from_numpy(image)).argmax()
            middle = (shown["low"][row] + shown["high"][row]) / 2
            hidden[0, shown["neuron"][row]] = float(middle)
            logits = net.run({site.hidden: hidden}, ["logits"])["logits"][0]
        label = digits.repair.y[shown["sample"][row]]
        assert before != label
        assert logits[label] > logits[before]


def test_claimed_accuracy_is_that_of_the_proposed_model(digits):
    model = digits.network(SQUARE, steps=30)
    found = 0
    for proposal in VeRe(rounds=8).candidates(task_of(digits, model)):
        if isinstance(proposal, Candidate):
            true = proposal.apply(model).accuracy(digits.validation)
            assert proposal.validation_accuracy == pytest.approx(true, abs=1e-9)
            found += 1
    assert found


def test_the_seed_decides_the_fit_and_the_draw_alone(digits):
    task = {seed: task_of(digits, digits.network(SQUARE, steps=30), seed=seed) for seed in (1, 2)}

    def first(seed, **options):
        return run(VeRe(rounds=1, **options), task[seed])

    assert first(1).model.hash == first(1).model.hash != first(2).model.hash
    np.testing.assert_array_equal(first(1).localisation.score, first(2).localisation.score)
    few = {"faults": 20, "correct": 200}
    scores_of = [first(seed, **few).localisation.score for seed in (1, 2)]
    assert not np.array_equal(*scores_of)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "one mean", "correct_per_fault": 10, "only_gains": True},
        {"limits": (0.0, 10.0), "pieces": 5},
        {"interval_times": 1.0},
        {"strict_ideal": True},
    ],
)
def test_variants_of_the_code_run(digits, options):
    model = digits.network(SQUARE, steps=30)
    result = run(VeRe(rounds=4, **options), task_of(digits, model))
    assert result.outcome is Outcome.FIXED, result.reason
    assert result.model.accuracy(digits.repair) >= model.accuracy(digits.repair)


# -- what it cannot take -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"pieces": 0}, {"cap": 0}, {"limits": (3.0, 1.0)}, {"loss": "x"}, {"layer": "fc1"}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ModelfixError, match="vere"):
        VeRe(**options)


def test_layers_that_cannot_be_written_are_unadaptable(graph):
    def start():
        return graph((8, 1, 1)).add("Flatten", "flat", "x")

    w = np.random.default_rng(0).normal(size=(8, 8))
    no_bias = start().dense("a", "z", "flat", w, np.ones(8)).add("Relu", "h", "z")
    no_bias.dense("b", "z2", "h", w).add("Relu", "h2", "z2").dense("c", "y", "h2", w[:3], w[0, :3])
    tied = start().dense("a", "z", "flat", w, np.ones(8)).add("Relu", "h", "z")
    tied.add("Gemm", "z2", "h", "a.weight", "a.bias", transB=1).add("Relu", "h2", "z2")
    tied.dense("c", "y", "h2", w[:3], w[0, :3])
    beside = start().dense("a", "z", "flat", w, np.ones(8)).add("Relu", "h", "z")
    beside.dense("b", "z2", "h", w, w[0]).add("Add", "s", "z2", "h").add("Relu", "h2", "s")
    beside.dense("c", "y", "h2", w[:3], w[0, :3])
    for model, reason in (
        (no_bias.model("y", 3), "has no bias"),
        (tied.model("y", 3), "shares its weights"),
        (beside.model("y", 3), "Add interrupts the chain"),
    ):
        with pytest.raises(Unadaptable, match=reason):
            find_site(model)


def test_what_stands_between_dense_layers_is_found(digits):
    model = digits.network((64, 48, 32, 10), norm=True, steps=15)
    chain, before = trailing(model)
    assert before == "Flatten"
    assert [link.kind for link in chain] == ["dense", "norm", "activation"] * 2 + ["dense"]
    site = find_site(model, relaxed=True)
    assert [link.kind for link in site.making] == ["norm", "activation"]
    net = load(model)
    suffix = read_suffix(net, site.suffix)
    x = torch.from_numpy(digits.repair.images(slice(0, 50)))
    with torch.no_grad():
        held = net.activations(x, [site.hidden, "logits"])
        torch.testing.assert_close(suffix(held[site.hidden]), held["logits"], rtol=0, atol=1e-4)


def test_a_named_layer_must_make_hidden_neurons(dense_model):
    model = dense_model(20, 16, 12, 8, 5)
    assert find_site(model, True).maker.name == "fc2"
    assert find_site(model, True, "fc1").maker.name == "fc1"
    with pytest.raises(Unadaptable, match="fc1, fc2, fc3 would do"):
        find_site(model, True, "fc4")
    with pytest.raises(ModelfixError, match="its layers are fc1"):
        find_site(model, True, "fc9")


# -- parts -------------------------------------------------------------------------------------


def test_intervals():
    hidden = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    edges = intervals(hidden, 4)
    assert edges.tolist() == [[-2, -1, 0, 1, 2], [1, 1, 1, 1, 1]]
    assert intervals(hidden, 2, times=1.0)[0].tolist() == [-2, -1, 0]
    assert intervals(hidden, 2, limits=(0.0, 10.0))[1].tolist() == [0, 5, 10]


def test_scores_are_scaled_for_each_input():
    significance = torch.tensor([[0.0, 3.0, 5.0], [2.0, 3.0, 0.0], [4.0, 3.0, 0.0]])
    assert scores(significance).tolist() == [1.0, 0.5, 1.0]


def test_blocks_change_no_line(suffix_of, problem, monkeypatch):
    for widths, operators in (((9, 14, 5), ["Relu"]), ((9, 14, 11, 7, 5), ["Relu"] * 3)):
        suffix = suffix_of(widths, operators)
        given = problem(suffix)
        expected = crown(suffix, *given)
        for block in (1, 500, 10**6):
            monkeypatch.setattr("modelfix_vere.relaxation.BLOCK", block)
            values = torch.cat([v for _, v in lower_lines(suffix, *given)])
            torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", ["Relu", "LeakyRelu", "Sigmoid", None])
@pytest.mark.parametrize("loss", ["two means", "one mean"])
def test_the_fit_is_that_of_autograd_and_torchs_adam(operator, loss):
    rng = np.random.default_rng(0)
    u = rng.normal(size=(100, 6)) if operator else rng.normal(size=100)
    start = np.concatenate([rng.normal(size=7) if operator else [], [1.0, 0.0]])
    function = Activation(operator, 0.25 if operator == "LeakyRelu" else 0.0) if operator else None
    neuron = Neuron(start, function, 1.3 if operator else 1.0, 0.2 if operator else 0.0)
    now, faulty = neuron(start, u), np.arange(100) % 4 == 0
    # Not exactly at the present values: Adam makes whole steps of differences of rounding.
    low = now + np.where(faulty, rng.uniform(-1, 1, 100), -0.02)
    aim = Aim(u, low, low + np.where(faulty, 0.3, 0.04), faulty)
    found = fit(neuron, aim, np.random.default_rng(5), epochs=6, batch_size=16, loss=loss)

    parameters = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([parameters], 0.01)
    order = np.random.default_rng(5)
    for _ in range(6):
        for rows in torch.from_numpy(order.permutation(100)).split(16):
            source = torch.tensor(u)[rows]
            if operator:
                z = 1.3 * (source @ parameters[:6] + parameters[6]) + 0.2
                source = function(z)
            r = parameters[-2] * source + parameters[-1]
            least, most = (torch.tensor(end)[rows] for end in (aim.low, aim.high))
            squared = ((least - r).relu() + (r - most).relu()) ** 2
            wrong = torch.tensor(faulty)[rows]
            parts = [squared] if loss == "one mean" else [squared[wrong], squared[~wrong]]
            total = sum(part.mean() for part in parts if len(part))
            if total.item() == 0:
                continue
            adam.zero_grad()
            total.backward()
            adam.step()
    assert np.abs(found - start).max() > 0.02
    np.testing.assert_allclose(found, parameters.detach().numpy(), rtol=0, atol=1e-5)
