import numpy as np
import pytest
from modelfix_care import Care
from modelfix_care.hidden import find_hidden
from modelfix_care.localisation import Objective, objective, scored_neurons, select
from modelfix_care.repair import Gain
from modelfix_care.tail import Tail
from modelfix_core.approach import Localisation, Outcome, Task
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError, Unadaptable
from modelfix_core.fixing import run
from modelfix_core.torch import load
from modelfix_testing import layerless_model, mlp


def task_of(model, split, **changes):
    return Task(model=model, repair=split, validation=split, **changes)


def repairable(model, seed=0, n=300):
    """Inputs with the labels of a model in which some neurons are scaled."""
    hidden, rng = find_hidden(model), np.random.default_rng(seed)
    factors = rng.uniform(0, 2, hidden.size)
    true = model.with_weights(hidden.folded(model, np.arange(hidden.size), factors))
    x = rng.normal(size=(n, *model.input_shape)).astype(np.float32)
    return Split(x, true.predict(x).argmax(axis=1).astype(np.int64))


@pytest.mark.parametrize("name", ["relu", "tanh", "norm below", "deep", "beside", "pooled"])
def test_every_kind_of_model_is_repaired(networks, name):
    model = networks[name]
    split = repairable(model)
    result = run(Care(neurons=4, iterations=30, tolerance=0.0), task_of(model, split))
    assert result.outcome is Outcome.FIXED, result.reason
    assert result.validation_accuracy["after"] > result.validation_accuracy["before"]
    claimed = result.candidates[result.best]["validation_accuracy"]
    assert claimed == pytest.approx(result.validation_accuracy["after"], abs=1e-9)


def test_localisation_names_units_or_the_weights_that_carry_them(networks, inputs):
    def blamed(name):
        task = task_of(networks[name], inputs(networks[name], n=200))
        return next(Care(neurons=2).candidates(task))

    units, weights = blamed("relu"), blamed("pooled")
    assert isinstance(units, Localisation)
    assert (units.kind, set(units.layer), len(units)) == ("neuron", {"3"}, 2)
    assert (np.diff(units.score) <= 0).all()
    assert (weights.kind, set(weights.layer), len(weights)) == ("weight", {"fc"}, 2 * 4)
    columns = weights.index.reshape(2, 4) % 7
    assert (columns == columns[:, :1]).all()
    assert (weights.index.reshape(2, 4) // 7 == np.arange(4)).all()
    assert set(blamed("norm below").layer) == {"4"}  # the BatchNorm is scaled


def test_a_model_that_cannot_be_improved_is_proposed_as_it_is(networks, inputs):
    model = networks["relu"]
    split = inputs(model)
    right = model.predict(split).argmax(axis=1) == split.y
    candidates = list(Care(iterations=15).candidates(task_of(model, split.select(right))))[1:]
    assert [dict(candidate.weights) for candidate in candidates] == [{}]


def test_neurons_without_any_effect_are_a_failure(networks, inputs):
    model = networks["relu"]
    split = inputs(model)
    classifier = model.layers("dense")[-1]
    deaf = model.with_weights({classifier.weight: np.zeros_like(model.weights[classifier.weight])})
    result = run(Care(), task_of(deaf, split))
    assert result.outcome is Outcome.FAILURE
    assert "another layer" in result.reason


def test_the_seed_decides_the_search_alone(networks):
    model = networks["relu"]
    split = repairable(model)

    def fixed(seed):
        return run(Care(neurons=3, iterations=20), task_of(model, split, seed=seed))

    assert fixed(1).model.hash == fixed(1).model.hash != fixed(2).model.hash
    assert fixed(1).localisation.index.tolist() == fixed(2).localisation.index.tolist()


def test_what_has_no_hidden_vector_is_unadaptable(graph):
    single = mlp([np.ones((1, 8)), np.ones((4, 1))], [np.zeros(1), np.zeros(4)], (8, 1, 1))
    direct = mlp([np.ones((4, 8))], [np.zeros(4)], (8, 1, 1))
    tied = graph((8, 1, 1)).add("Flatten", "flat", "x").dense("fc", "z1", "flat", np.ones((8, 8)))
    tied.add("Gemm", "z2", "z1", "fc.weight", transB=1).dense("out", "y", "z2", np.ones((4, 8)))
    shared = graph((2, 3, 3)).add(
        "Conv", "c", "x", weights=[("conv.weight", np.ones((4, 2, 3, 3)))]
    )
    shared.add("Flatten", "f", "c").dense("fc", "z", "f", np.ones((4, 4))).add("Add", "y", "z", "f")
    for model, reason in (
        (layerless_model((1, 4, 4), 3), "no dense layer"),
        (single, "single neuron"),
        (direct, "image itself"),
        (tied.model("y", 4), "shares its weights"),
        (shared.model("y", 4), "used elsewhere"),
    ):
        with pytest.raises(Unadaptable, match=reason):
            find_hidden(model)


def test_a_layer_can_be_named(networks):
    model = networks["deep"]
    assert find_hidden(model).layer.name == "fc2"
    assert find_hidden(model, "fc1").tensor == "z1"
    with pytest.raises(Unadaptable, match="classifier"):
        find_hidden(model, "fc3")
    with pytest.raises(Unadaptable, match="conv layer"):
        find_hidden(networks["pooled"], "conv")
    with pytest.raises(ModelfixError, match="fc1, fc2, fc3"):
        find_hidden(model, "fc9")


@pytest.mark.parametrize(
    ("amount", "size", "count"), [(0.1, 84, 9), (0.1, 70, 7), (3, 84, 3), (1.0, 5, 5), (9, 5, 5)]
)
def test_amounts_of_neurons_are_numbers_or_shares_rounded_up(amount, size, count):
    assert len(select(np.arange(size), amount)) == count


def test_ranks():
    effects = np.array([0.1, -0.5, 0.3, 0.3])
    assert select(effects, 3).tolist() == [2, 3, 0]
    assert select(effects, 2, absolute=True).tolist() == [1, 2]
    assert scored_neurons(8, 3).tolist() == [0, 3, 6]


def test_balanced_objective_weighs_faults_as_much_as_the_rest():
    right = np.array([False] * 2 + [True] * 8)
    aim = objective(right, balanced=True)
    assert aim.weights[~right].sum() == aim.weights[right].sum() == aim.before == 8
    assert objective(right).total == 10
    assert objective(np.ones(3, dtype=bool), balanced=True).total == 3
    assert isinstance(aim, Objective)


@pytest.mark.parametrize("balanced", [False, True])
def test_racing_changes_no_gain_that_matters(networks, inputs, balanced):
    model = networks["relu"]
    tail = Tail(load(model), find_hidden(model), inputs(model, n=500))
    gain = Gain(tail, objective(tail.right, balanced), np.arange(6))
    positions = np.random.default_rng(0).uniform(-1, 1, (40, 6))
    exact = gain(positions, np.full(40, -np.inf))
    bars = np.full(40, np.median(exact))
    hurried = gain(positions, bars)
    np.testing.assert_array_equal(hurried[exact >= bars], exact[exact >= bars])
    assert np.isneginf(hurried).any()
    assert (hurried[exact < bars] < bars[exact < bars]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"values": 1},
        {"neurons": 0},
        {"neurons": 1.5},
        {"particles": 0},
        {"rank": "x"},
        {"stride": 0},
    ],
)
def test_bad_options_are_refused_by_name(options):
    with pytest.raises(ModelfixError, match=next(iter(options))):
        Care(**options)


def test_a_number_of_neurons_stays_a_number():
    assert isinstance(Care(neurons=1).config.neurons, int)
    assert isinstance(Care(neurons=1.0).config.neurons, float)
