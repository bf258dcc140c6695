import numpy as np
import pytest
from modelfix_core.errors import ModelfixError
from modelfix_metrics.normalisation import normalisation_of

MEAN = np.array([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)
STD = np.array([0.2, 0.25, 0.5]).reshape(3, 1, 1)
SHAPE = (3, 2, 2)
WEIGHT = np.eye(2, 12)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [("Sub", MEAN, False), ("Div", STD, False)],
        [("Mul", 1 / STD, False), ("Add", -MEAN / STD, True)],
        [("Mul", 255.0, False), ("Sub", 127.5, False), ("Div", 127.5, False)],
        [("Sub", 1.0, True)],
    ],
)
def test_the_chain_is_one_affine_map(linear, steps):
    model = linear(WEIGHT, shape=SHAPE, before=steps)
    found = normalisation_of(model)
    x = np.random.default_rng(0).random((4, *SHAPE), dtype=np.float32)
    expected = x
    if steps:
        expected = model.activations(x, [f"pre{len(steps) - 1}"])[f"pre{len(steps) - 1}"]
    assert np.allclose(x * found.scale + found.shift, expected, atol=1e-5)
    assert found.identity == (not steps)


def test_what_is_no_constant_normalisation_ends_the_chain(linear):
    pixelwise = np.random.default_rng(0).random((1, 3, 2, 2))
    model = linear(WEIGHT, shape=SHAPE, before=[("Mul", 2.0, False), ("Add", pixelwise, False)])
    found = normalisation_of(model)
    assert (found.scale == 2).all()
    assert (found.shift == 0).all()
    nonlinear = linear(WEIGHT, shape=SHAPE, before=[("Relu", None, False), ("Mul", 2.0, False)])
    assert normalisation_of(nonlinear).identity


def test_a_normalisation_by_zero_is_refused(linear):
    model = linear(WEIGHT, shape=SHAPE, before=[("Mul", 0.0, False)])
    with pytest.raises(ModelfixError, match="by 0"):
        normalisation_of(model)
