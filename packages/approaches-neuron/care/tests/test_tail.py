import numpy as np
import pytest
import torch
from modelfix_care.hidden import find_hidden
from modelfix_care.tail import Tail
from modelfix_core.errors import Failure
from modelfix_core.torch import load
from torch.utils._python_dispatch import TorchDispatchMode

CASES = [
    ("relu", None),
    ("tanh", None),
    ("norm below", None),
    ("deep", "fc1"),
    ("deep", None),
    ("beside", "fc1"),
    ("beside", "fc2"),
    ("norm above", None),
    ("pooled", None),
]


def prepared(networks, inputs, name, layer):
    model = networks[name]
    split, hidden = inputs(model), find_hidden(model, layer)
    net = load(model)
    return model, split, hidden, net, Tail(net, hidden, split)


def forced(net, hidden, split, neuron, value):
    """The whole network with one column overwritten, one version at a time."""
    x = torch.from_numpy(split.images())
    z = net.activations(x, [hidden.tensor])[hidden.tensor].detach().clone()
    z[:, neuron] = float(value)
    known = {net.model.input_name: x, hidden.tensor: z}
    with torch.no_grad():
        return net.run(known, [net.model.output_name])[net.model.output_name].numpy()


def margin_order(model, split):
    logits = model.predict(split)
    own = logits[np.arange(len(split)), split.y]
    others = logits.copy()
    others[np.arange(len(split)), split.y] = -np.inf
    return np.argsort(own - others.max(axis=1), kind="stable")


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_forcing_is_the_whole_network_with_a_column_overwritten(networks, inputs, name, layer):
    _, split, hidden, net, tail = prepared(networks, inputs, name, layer)
    neurons = np.repeat(np.arange(hidden.size), 3)
    values = np.linspace(tail.low, tail.high, 3, axis=1).ravel()
    counts = [
        (forced(net, hidden, split, j, v).argmax(axis=1) == split.y).sum()
        for j, v in zip(neurons, values.astype(np.float32), strict=True)
    ]
    assert len(set(counts)) > 3
    np.testing.assert_array_equal(tail.forced(neurons, values), counts)


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_scaling_is_the_model_with_folded_weights(networks, inputs, name, layer):
    model, split, hidden, _, tail = prepared(networks, inputs, name, layer)
    neurons = np.array([3, 0, 4])
    factors = np.random.default_rng(2).uniform(0, 2, (5, 3))
    factors[0] = 0
    order = margin_order(model, split)
    logits = tail.logits(neurons, factors)
    for p, row in enumerate(factors):
        changed = model.with_weights(hidden.folded(model, neurons, row))
        expected = changed.predict(split)[order]
        np.testing.assert_allclose(logits[:, p], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 1e-3
    right = (logits.argmax(axis=2) == tail.y.numpy()[:, None]).sum(axis=0)
    np.testing.assert_array_equal(tail.scaled(neurons, factors), right)


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_parts_add_up_and_weights_count(networks, inputs, name, layer):
    *_, tail = prepared(networks, inputs, name, layer)
    neurons, factors = np.array([1, 2]), np.random.default_rng(3).uniform(0, 2, (4, 2))
    whole = tail.scaled(neurons, factors)
    parts = [tail.scaled(neurons, factors, part) for part in (slice(0, 13), slice(13, None))]
    np.testing.assert_array_equal(sum(parts), whole)
    double = tail.scaled(neurons, factors, weights=np.full(len(tail.y), 2.0))
    np.testing.assert_array_equal(double, 2 * whole)
    nothing = tail.scaled(neurons, factors, slice(5, 5))
    np.testing.assert_array_equal(nothing, np.zeros(4))


def test_inputs_stand_by_falling_doubt(networks, inputs):
    model, split, _, _, tail = prepared(networks, inputs, "relu", None)
    order = margin_order(model, split)
    np.testing.assert_array_equal(tail.y.numpy(), split.y[order])
    np.testing.assert_array_equal(tail.right, (model.predict(split).argmax(1) == split.y)[order])
    assert not tail.right[0]
    assert (np.diff(tail.right.astype(int)) >= 0).all()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator returned."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize(("name", "layer"), CASES)
def test_a_small_budget_changes_the_chunks_alone(networks, inputs, name, layer):
    model = networks[name]
    split, hidden, net = inputs(model, n=400), find_hidden(model, layer), load(model)
    neurons = np.repeat(np.arange(hidden.size), 8)
    values = np.random.default_rng(0).normal(size=len(neurons))
    chosen, factors = np.arange(3), np.random.default_rng(1).uniform(0, 2, (64, 3))
    roomy = Tail(net, hidden, split)
    memory = 256 * 1024
    tight = Tail(net, hidden, split, memory)
    with Largest() as largest:
        forced = tight.forced(neurons, values)
        scaled = tight.scaled(chosen, factors)
    assert 0 < largest.bytes <= memory // 2
    np.testing.assert_array_equal(forced, roomy.forced(neurons, values))
    np.testing.assert_array_equal(scaled, roomy.scaled(chosen, factors))
    with Largest() as largest:
        roomy.forced(neurons, values)
    assert largest.bytes > memory // 2


def test_vectors_that_do_not_fit_are_a_failure(networks, inputs):
    model = networks["relu"]
    with pytest.raises(Failure, match="smaller split"):
        Tail(load(model), find_hidden(model), inputs(model, n=400), memory=10_000)
