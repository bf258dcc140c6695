import pytest
import torch
from modelfix_core.errors import ModelfixError
from modelfix_core.subjects.architectures import ARCHITECTURES, build


def test_lenet5_is_the_studys():
    network = build("lenet5", 10, 1)
    assert sum(p.numel() for p in network.parameters()) == 29450
    assert network.conv1.kernel_size == (5, 5)
    assert network.conv2.kernel_size == (3, 3)
    assert network.pool1.kernel_size == 3
    assert network.pool2.kernel_size == 2
    assert network.fc1.in_features == 144


@pytest.mark.parametrize("name", ["resnet8", "densenet", "lenet5"])
def test_gives_logits_for_small_images(name):
    size = 28 if name == "lenet5" else 16
    assert build(name, 7, 3).eval()(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_vgg16_and_resnet18_have_their_depth():
    convolutions = {
        name: sum(isinstance(m, torch.nn.Conv2d) for m in build(name, 10, 3).modules())
        for name in ("vgg16", "resnet18")
    }
    assert convolutions == {"vgg16": 13, "resnet18": 20}


def test_normalises_inside():
    torch.manual_seed(0)
    plain = build("lenet5", 10, 1).eval()
    inside = build("lenet5", 10, 1, mean=[0.1], std=[0.3]).eval()
    inside.load_state_dict(
        {**plain.state_dict(), **inside.normalise.state_dict(prefix="normalise.")}
    )
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(inside(x), plain((x - 0.1) / 0.3))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ModelfixError, match="resnet18") as error:
        build("lenet6", 10, 1)
    assert all(name in str(error.value) for name in ARCHITECTURES)
