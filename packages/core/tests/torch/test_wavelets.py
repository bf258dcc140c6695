import torch
from modelfix_core.torch.wavelets import compose, decompose


def test_bands_make_up_the_image_and_keep_its_energy():
    x = torch.rand(5, 3, 12, 20, dtype=torch.float64)
    low, details = decompose(x)
    assert low.shape == (5, 3, 6, 10)
    assert details.shape == (3, 5, 3, 6, 10)
    torch.testing.assert_close(compose(low, details), x)
    torch.testing.assert_close(low.square().sum() + details.square().sum(), x.square().sum())


def test_bands_see_their_direction():
    ramp = torch.arange(8.0).expand(8, 8)
    low, (columns, rows, both) = decompose(ramp)
    torch.testing.assert_close(low[0], torch.tensor([1.0, 5, 9, 13]))
    assert (columns == -1).all()
    assert not rows.any()
    assert not both.any()
    assert decompose(ramp.T)[1][1].any()
