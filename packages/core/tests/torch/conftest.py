from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import torch

    torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other

SHAPES = {
    "lenet5": (1, 28, 28),
    "vgg": (3, 16, 16),
    "resnet8": (3, 16, 16),
    "densenet": (3, 16, 16),
}


def _build(name):
    from modelfix_core.subjects.architectures import build, densenet, vgg

    if name == "vgg":
        return vgg(10, 3, 16, blocks=((8,), (16, 16)), hidden=(24,))
    if name == "densenet":
        return densenet(10, 3, blocks=(2, 2), growth=6, stem=12)
    channels = SHAPES[name][0]
    return build(name, 10, channels, mean=[0.4] * channels, std=[0.3] * channels)


@cache
def _network(name):
    """A module whose BatchNorms have seen data, and its exported model."""
    from modelfix_core.torch import export

    rng = torch.random.get_rng_state()
    torch.manual_seed(0)
    module = _build(name)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(part.weight, 1, 0.2)
                torch.nn.init.normal_(part.bias, 0, 0.2)
        module(torch.rand(32, *SHAPES[name]))
    torch.random.set_rng_state(rng)
    module.eval()
    return module, export(module, SHAPES[name], classes=[f"c{k}" for k in range(10)], origin="test")


@pytest.fixture(params=list(SHAPES))
def network(request):
    """(module in eval mode, model) of each architecture; both shared, never to be changed."""
    return _network(request.param)


@pytest.fixture
def network_of():
    return _network


@pytest.fixture
def images():
    def draw(model, count, seed=0):
        rng = np.random.default_rng(seed)
        return rng.random((count, *model.input_shape), dtype=np.float32)

    return draw
