import numpy as np
import pytest
import torch
from modelfix_core.torch import export, load
from modelfix_core.torch.initialising import reinitialise
from torch import nn


def test_fresh_weights_are_drawn_as_torch_draws_them():
    layers = [nn.Conv2d(1, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten()]
    net = load(export(nn.Sequential(*layers, nn.Linear(40 * 36, 10)).eval(), (1, 8, 8)))
    model = net.model
    state = torch.random.get_rng_state()
    reinitialise(net, 5)
    assert torch.equal(state, torch.random.get_rng_state())
    convolution = net.tensor(model.layers("conv")[0].weight).detach()
    assert convolution.abs().max() <= 1 / 3
    assert float(convolution.std()) == pytest.approx(1 / 3 / np.sqrt(3), rel=0.1)
    norm = model.layers("batchnorm")[0]
    assert torch.equal(net.tensor(norm.weight), torch.ones(40))
    first = convolution.clone()
    reinitialise(net, 5)
    assert torch.equal(first, net.tensor(model.layers("conv")[0].weight))
    reinitialise(net, 6)
    assert not torch.equal(first, net.tensor(model.layers("conv")[0].weight))
