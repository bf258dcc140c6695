"""Architectures of the subjects: plain torch modules that know nothing of ONNX.

Every network takes float images ``[N, C, H, W]`` in [0, 1] and gives logits ``[N, classes]``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from modelfix_core.errors import ModelfixError


class Normalise(nn.Module):
    """Subtract `mean` and divide by `std`, per channel, inside the network.

    Parameters
    ----------
    mean, std : sequence of float, [C]
        Of images in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images [N, C, H, W]."""
        return (x - self.mean) / self.std


def lenet5(classes: int = 10, channels: int = 1, size: int = 28) -> nn.Sequential:
    """Build the study's LeNet5; 29,450 parameters for 28 x 28 grey images and 10 classes.

    Parameters
    ----------
    classes, channels : int
    size : int
        Height and width of the images, at least 14.

    Returns
    -------
    nn.Sequential
        Layers ``conv1``, ``conv2``, ``fc1``, ``fc2`` and ``fc3``.
    """
    side = ((size - 4) // 3 - 2) // 2
    return _named(
        conv1=nn.Conv2d(channels, 6, 5),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(3),
        conv2=nn.Conv2d(6, 16, 3),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(16 * side * side, 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, classes),
    )


VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg(
    classes: int = 10,
    channels: int = 3,
    size: int = 32,
    blocks: Sequence[Sequence[int]] = VGG16,
    hidden: Sequence[int] = (512, 512),
    dropout: float = 0.5,
) -> nn.Sequential:
    """Build a VGG with BatchNorm for small images; the default is VGG16 for 32 x 32.

    VGG16 has three dense layers (Simonyan and Zisserman, 2015). Their width is that of the last
    block, so that one of them is square: VERE, which the study applied to its VGG16 alone, needs
    that.

    Parameters
    ----------
    classes, channels, size : int
        `size` is divisible by 2 to the number of blocks.
    blocks : sequence of sequence of int
        Output channels of the 3 x 3 convolutions; each block ends with a max-pool of 2.
    hidden : sequence of int
        Widths of the dense layers before the last one.
    dropout : float
        After each of them, in [0, 1).
    """
    features: list[nn.Module] = []
    width = channels
    for block in blocks:
        for out in block:
            features += [
                nn.Conv2d(width, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            width = out
        features.append(nn.MaxPool2d(2))
    side = size // 2 ** len(blocks)
    classifier: list[nn.Module] = []
    width *= side * side
    for out in hidden:
        classifier += [nn.Linear(width, out), nn.ReLU(), nn.Dropout(dropout)]
        width = out
    return _named(
        features=nn.Sequential(*features),
        flatten=nn.Flatten(),
        classifier=nn.Sequential(*classifier, nn.Linear(width, classes)),
    )


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm beside a shortcut (He et al., 2016)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to [N, out, H / stride, W / stride]."""
        inner = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def resnet(
    classes: int = 10,
    channels: int = 3,
    blocks: Sequence[int] = (2, 2, 2, 2),
    widths: Sequence[int] = (64, 128, 256, 512),
) -> nn.Sequential:
    """Build a residual network for small images: 3 x 3 stem of stride 1, no first pooling.

    Parameters
    ----------
    classes, channels : int
    blocks : sequence of int
        Basic blocks per stage; the default is ResNet18.
    widths : sequence of int
        Channels per stage; each stage after the first halves height and width.
    """
    stages: list[nn.Module] = []
    width = widths[0]
    for position, (count, out) in enumerate(zip(blocks, widths, strict=True)):
        strides = [1 if position == 0 else 2] + [1] * (count - 1)
        stage: list[nn.Module] = []
        for stride in strides:
            stage.append(BasicBlock(width, out, stride))
            width = out
        stages.append(nn.Sequential(*stage))
    return _named(
        conv1=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
        **{f"layer{number}": stage for number, stage in enumerate(stages, 1)},
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(width, classes),
    )


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3 x 3 convolution whose output is appended to its input."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(width, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to [N, width + growth, H, W]."""
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


def densenet(
    classes: int = 10,
    channels: int = 3,
    blocks: Sequence[int] = (4, 4, 4),
    growth: int = 12,
    stem: int = 24,
) -> nn.Sequential:
    """Build a small DenseNet (Huang et al., 2017); transitions halve channels, height and width.

    Parameters
    ----------
    classes, channels : int
    blocks : sequence of int
        Dense layers per block.
    growth : int
        Channels that each dense layer adds.
    stem : int
        Channels of the first convolution.
    """
    parts: dict[str, nn.Module] = {"conv0": nn.Conv2d(channels, stem, 3, padding=1, bias=False)}
    width = stem
    for number, count in enumerate(blocks, 1):
        layers = [DenseLayer(width + growth * position, growth) for position in range(count)]
        parts[f"block{number}"] = nn.Sequential(*layers)
        width += growth * count
        if number < len(blocks):
            parts[f"transition{number}"] = nn.Sequential(
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width // 2, 1, bias=False),
                nn.AvgPool2d(2),
            )
            width //= 2
    return _named(
        **parts,
        bn=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(width, classes),
    )


class Bottleneck(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution whose output is appended to the input (DenseNet-B).

    Parameters have the names of torchvision's.
    """

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to [N, width + growth, H, W]."""
        inner = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(inner)))], dim=1)


def densenet121(
    classes: int = 1000,
    channels: int = 3,
    blocks: Sequence[int] = (6, 12, 24, 16),
    growth: int = 32,
    stem: int = 64,
) -> nn.Sequential:
    """Build DenseNet121 (Huang et al., 2017) with the parameter names of torchvision.

    Parameters
    ----------
    classes, channels : int
    blocks : sequence of int
        Dense layers per block.
    growth : int
        Channels that each dense layer adds.
    stem : int
        Channels of the first convolution, 7 x 7 of stride 2 with a max-pool of stride 2.
    """
    features: dict[str, nn.Module] = {
        "conv0": nn.Conv2d(channels, stem, 7, 2, padding=3, bias=False),
        "norm0": nn.BatchNorm2d(stem),
        "relu0": nn.ReLU(),
        "pool0": nn.MaxPool2d(3, 2, padding=1),
    }
    width = stem
    for number, count in enumerate(blocks, 1):
        features[f"denseblock{number}"] = _named(
            **{
                f"denselayer{layer + 1}": Bottleneck(width + growth * layer, growth)
                for layer in range(count)
            }
        )
        width += growth * count
        if number < len(blocks):
            features[f"transition{number}"] = _named(
                norm=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                conv=nn.Conv2d(width, width // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
            width //= 2
    features[f"norm{len(blocks) + 1}"] = nn.BatchNorm2d(width)
    return _named(
        features=_named(**features),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        classifier=nn.Linear(width, classes),
    )


def facenet(
    classes: int = 2,
    channels: int = 3,
    size: int = 64,
    widths: Sequence[int] = (32, 64, 128, 256),
    hidden: int = 128,
) -> nn.Sequential:
    """Build a small network for faces: four convolutions with poolings and two dense layers.

    The study's FaceNet has 11 layers, counted as the 8 of its LeNet5 (convolutions, poolings,
    flattening, dense layers), and neither three dense layers in a row nor a square one: REASSURE
    and VERE could not be applied to it. Nothing else is published of it; the widths are ours.

    Parameters
    ----------
    classes, channels : int
    size : int
        Height and width of the images, divisible by 2 to the number of convolutions.
    widths : sequence of int
        Output channels of the 3 x 3 convolutions.
    hidden : int
        Width of the first dense layer.
    """
    parts: dict[str, nn.Module] = {}
    width = channels
    for number, out in enumerate(widths, 1):
        parts[f"conv{number}"] = nn.Conv2d(width, out, 3, padding=1)
        parts[f"relu{number}"] = nn.ReLU()
        parts[f"pool{number}"] = nn.MaxPool2d(2)
        width = out
    side = size // 2 ** len(widths)
    return _named(
        **parts,
        flatten=nn.Flatten(),
        fc1=nn.Linear(width * side * side, hidden),
        relu_fc1=nn.ReLU(),
        fc2=nn.Linear(hidden, classes),
    )


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "vgg16": vgg,
    "resnet8": partial(resnet, blocks=(1, 1, 1), widths=(16, 32, 64)),
    "resnet18": resnet,
    "densenet": densenet,
    "densenet121": densenet121,
    "facenet": facenet,
}


def build(
    name: str,
    classes: int,
    channels: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: object,
) -> nn.Module:
    """Build a named architecture with fresh weights.

    Parameters
    ----------
    name : str
        A key of `ARCHITECTURES`.
    classes, channels : int
        Number of logits; channels of the images.
    mean, std : sequence of float, [channels], optional
        Put a `Normalise` as the first module, ``normalise``.
    **options
        Passed to the architecture, for example ``size`` of `lenet5` and `vgg`.

    Raises
    ------
    ModelfixError
        If there is no architecture of that name.
    """
    if name not in ARCHITECTURES:
        raise ModelfixError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}.")
    network = ARCHITECTURES[name](classes=classes, channels=channels, **options)
    if mean is None or std is None:
        return network
    return _named(normalise=Normalise(mean, std), **dict(network.named_children()))


def _named(**modules: nn.Module) -> nn.Sequential:
    network = nn.Sequential()
    for name, module in modules.items():
        network.add_module(name, module)
    return network
