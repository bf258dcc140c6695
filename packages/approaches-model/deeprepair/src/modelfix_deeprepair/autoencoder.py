"""Style transfer by an autoencoder with Haar pooling that is trained to reconstruct images.

The encoder's pooling keeps the low band and hands the details to the decoder, which undoes it
exactly; whitening and colouring between the stages change the style.
Source: Yoo et al., "Photorealistic Style Transfer via Wavelet Transforms", ICCV 2019.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.seeds import seed_for
from modelfix_core.torch.training import Epoch, Feed, FineTuning, Step, Training
from modelfix_core.torch.wavelets import compose, decompose
from torch import Tensor, nn
from torch.nn import functional

from modelfix_deeprepair.haar import cropped, padded
from modelfix_deeprepair.whitening import Statistics, statistics_of, transfer

E = 1.0  # added to each eigenvalue, as in the authors' code
BATCH = 64
LEARNING_RATE = 1e-3
SMALL = ((32, 64, 128), (0, 0, 0))
VGG = ((64, 128, 256, 512), (1, 1, 3, 0))
# Positions of the convolutions conv1_1 to conv4_1 in VGG19's `features`.
VGG_LAYERS = (0, 2, 5, 7, 10, 12, 14, 16, 19)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# From the number of a place and its features, [N, C, H, W], to changed features.
Change = Callable[[int, Tensor], Tensor]


class Autoencoder(Protocol):
    """Reconstructs RGB images, with features changed at certain places."""

    @property
    def pools(self) -> int:
        """How often the size is halved."""
        ...

    def __call__(self, x: Tensor, change: Change) -> Tensor:
        """Return images [N, 3, H, W]."""
        ...


class WaveAutoencoder(nn.Module):
    """Convolutions with Haar pooling, and their mirror image.

    Parameters
    ----------
    channels : sequence of int
        Of the stages of the encoder, each but the first at half the size of the one before.
    further : sequence of int
        Convolutions of each stage between its first and the pooling.
    """

    def __init__(self, channels: Sequence[int], further: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip((3, *channels), channels, further, strict=False))
        self.first = nn.ModuleList(_convolution(a, b) for a, b, _ in pairs)
        self.further = nn.ModuleList(_block(b, count) for _, b, count in pairs)
        self.undo_further = nn.ModuleList(_block(b, count) for _, b, count in pairs)
        self.undo_first = nn.ModuleList(_convolution(b, a) for a, b, _ in pairs)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    @property
    def pools(self) -> int:
        """How often the encoder halves the size."""
        return len(self.first) - 1

    def forward(self, x: Tensor, change: Change = lambda _place, features: features) -> Tensor:
        """Reconstruct RGB images [N, 3, H, W] with changed features at 2 * pools + 1 places."""
        x = functional.relu(self.first[0]((x - self.mean) / self.std))
        x = change(0, x)
        kept = []
        for stage in range(1, self.pools + 1):
            x, details = decompose(self.further[stage - 1](x))
            kept.append(details)
            x = change(stage, functional.relu(self.first[stage](x)))
        for stage in range(self.pools, 0, -1):
            x = compose(functional.relu(self.undo_first[stage](x)), kept.pop())
            x = change(2 * self.pools + 1 - stage, self.undo_further[stage - 1](x))
        return self.undo_first[0](x) * self.std + self.mean

    def load_encoder(self, path: Path) -> None:
        """Take the encoder's weights from a file of VGG19 and freeze them.

        Raises
        ------
        ModelfixError
            If the file is no such thing.
        """
        stages = zip(self.first, self.further, strict=True)
        own = [c for a, b in stages for c in (a, *b) if isinstance(c, nn.Conv2d)]
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            for convolution, number in zip(own, VGG_LAYERS, strict=True):
                names = ("weight", "bias")
                state = {name: found[f"features.{number}.{name}"] for name in names}
                convolution.load_state_dict(state)
        except FileNotFoundError:
            raise ModelfixError(f"{path}: there is no such file; give VGG19's weights.") from None
        except Exception as error:  # of many kinds, depending on what the file is
            raise ModelfixError(
                f"{path}: holds no weights of VGG19 with the names of torchvision."
            ) from error
        for convolution in own:
            convolution.requires_grad_(False)


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")


def _block(channels: int, count: int) -> nn.Sequential:
    layers = [(_convolution(channels, channels), nn.ReLU()) for _ in range(count)]
    return nn.Sequential(*(part for pair in layers for part in pair))


def small(seed: int) -> WaveAutoencoder:
    """Return an untrained autoencoder that is learned as a whole."""
    return _initial(SMALL, seed)


def of_vgg(seed: int, path: Path) -> WaveAutoencoder:
    """Return an autoencoder whose encoder is VGG19's, with an untrained decoder."""
    net = _initial(VGG, seed)
    net.load_encoder(path)
    return net


def _initial(shape: tuple[Sequence[int], Sequence[int]], seed: int) -> WaveAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed=seed, stage="autoencoder"))
        return WaveAutoencoder(*shape)


class Reconstruction:
    """The lesson of the autoencoder: mean squared error of the images."""

    def __init__(self, split: Split, images: int, device: str) -> None:
        self.feed = Feed(split, device)
        self.images = min(images, len(split))

    def __len__(self) -> int:
        return math.ceil(self.images / BATCH)

    @property
    def identity(self) -> dict[str, Any]:
        """The number of images there are."""
        return {"images": len(self.feed)}

    def epoch(self, epoch: Epoch) -> Iterator[Step]:
        """Yield the steps on a fresh draw of images."""
        order = epoch.draws(stage="order").permutation(len(self.feed))[: self.images]
        for x, _ in self.feed.batches(order, BATCH):
            x = as_rgb(padded(x, 2**epoch.module.pools))
            loss = functional.mse_loss(epoch.module(x), x)
            yield Step(loss, torch.zeros((), device=x.device), len(x))


def learn(
    net: WaveAutoencoder,
    split: Split,
    *,
    epochs: int,
    images: int,
    seed: int,
    device: str,
    progress: Callable[[str], None] = lambda note: None,
) -> float:
    """Train an autoencoder in place and return the mean squared error of its last epoch.

    Parameters
    ----------
    net : WaveAutoencoder
    split : Split
    epochs, images : int
        So many epochs of at most so many images.
    seed : int
    device : str
    progress : callable
    """
    recipe = FineTuning(
        epochs, LEARNING_RATE, BATCH, optimizer="adam", weight_decay=0, schedule="constant"
    )
    training = Training(
        net,
        Reconstruction(split, images, device),
        recipe,
        device=device,
        seed=seed,
        name="autoencoder",
        on_step=lambda number, step, note: progress(f"autoencoder, epoch {number}: {note}"),
    )
    error = 0.0
    for number in range(1, epochs + 1):
        error, _ = training.epoch(number)
    return error


class WaveStyle:
    """Gives images the style of others between the stages of an autoencoder.

    Parameters
    ----------
    net : Autoencoder
    styles : Tensor of float, [S, C, H, W]
        In [0, 1].
    alpha : float
        Strength in [0, 1].
    """

    def __init__(self, net: Autoencoder, styles: Tensor, alpha: float) -> None:
        self.net, self.alpha = net, alpha
        self.statistics: list[Statistics] = []

        def keep(_place: int, features: Tensor) -> Tensor:
            self.statistics.append(statistics_of(features.flatten(2), E))
            return features

        with torch.inference_mode():
            net(self._taken(styles), keep)

    def __call__(self, images: Tensor, index: Tensor) -> Tensor:
        """Stylise images as `HaarStyle` does."""

        def change(place: int, features: Tensor) -> Tensor:
            content = features.flatten(2)
            changed = transfer(content, self.statistics[place].at(index), E)
            low, high = content.amin(dim=(1, 2)), content.amax(dim=(1, 2))
            changed = changed.clamp(low.view(-1, 1, 1), high.view(-1, 1, 1)).view_as(features)
            return torch.lerp(features, changed, self.alpha)

        with torch.inference_mode():
            result = cropped(self.net(self._taken(images), change), images).clamp(0, 1)
        return result if images.shape[1] == 3 else result.mean(dim=1, keepdim=True)

    def _taken(self, images: Tensor) -> Tensor:
        return as_rgb(padded(images, 2**self.net.pools))


def as_rgb(images: Tensor) -> Tensor:
    """Repeat grey images to three channels."""
    return images.expand(-1, 3, -1, -1)
