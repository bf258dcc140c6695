import numpy as np
import torch
from modelfix_core import margins as of_arrays
from modelfix_core.torch.margins import margins


def test_margins_are_those_of_arrays():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    found = margins(torch.from_numpy(logits), torch.from_numpy(y))
    np.testing.assert_array_equal(found.numpy(), of_arrays.margins(logits, y))
    assert ((found < 0).numpy() == (logits.argmax(axis=1) != y)).all()
