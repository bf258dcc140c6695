"""The autoencoder of WCT2 as its authors trained it, read from their files.

Its encoder is that of VGG19 with Haar pooling; its decoder undoes each band of the pooling apart,
and sees the features before the pooling beside them (``cat5``). Nothing is learned here.
Source: Yoo et al., "Photorealistic Style Transfer via Wavelet Transforms", ICCV 2019.
"""

from pathlib import Path

import torch
from modelfix_core.errors import ModelfixError
from modelfix_core.torch.wavelets import compose, decompose
from torch import Tensor, nn
from torch.nn import functional

from modelfix_deeprepair.autoencoder import Change

FILES = {"encoder": "wave_encoder_cat5_l4.pth", "decoder": "wave_decoder_cat5_l4.pth"}
# Inputs and outputs of the convolutions of 3 x 3, by their names in the files.
CONVOLUTIONS = {
    "encoder": {
        "conv1_1": (3, 64),
        "conv1_2": (64, 64),
        "conv2_1": (64, 128),
        "conv2_2": (128, 128),
        "conv3_1": (128, 256),
        "conv3_2": (256, 256),
        "conv3_3": (256, 256),
        "conv3_4": (256, 256),
        "conv4_1": (256, 512),
    },
    "decoder": {
        "conv4_1": (512, 256),
        "conv3_4_2": (5 * 256, 256),
        "conv3_3": (256, 256),
        "conv3_2": (256, 256),
        "conv3_1": (256, 128),
        "conv2_2_2": (5 * 128, 128),
        "conv2_1": (128, 64),
        "conv1_2_2": (5 * 64, 64),
        "conv1_1": (64, 3),
    },
}
# What stands before each pooling, and after it.
POOLS = (
    (("conv1_2",), "conv2_1"),
    (("conv2_2",), "conv3_1"),
    (("conv3_2", "conv3_3", "conv3_4"), "conv4_1"),
)
UNPOOLS = (
    ("conv4_1", ("conv3_4_2", "conv3_3", "conv3_2")),
    ("conv3_1", ("conv2_2_2",)),
    ("conv2_1", ("conv1_2_2",)),
)


class Wct2(nn.Module):
    """Maps RGB images [N, 3, H, W] in [0, 1] to themselves, with features changed at 7 places.

    Sides are multiples of ``2 ** pools``.
    """

    pools = len(POOLS)

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.ModuleDict(
                {
                    name: nn.Conv2d(*channels, 3, padding=1, padding_mode="reflect")
                    for name, channels in CONVOLUTIONS[part].items()
                }
            )
            for part in FILES
        )
        self.encoder["conv0"] = nn.Conv2d(3, 3, 1)  # to the colours that VGG19 takes

    def forward(self, x: Tensor, change: Change = lambda _place, features: features) -> Tensor:
        """Reconstruct images."""
        x = change(0, functional.relu(self.encoder["conv1_1"](self.encoder["conv0"](x))))
        kept = []
        for place, (before, after) in enumerate(POOLS, 1):
            for name in before:
                x = functional.relu(self.encoder[name](x))
            low, details = decompose(x)
            kept.append((x, details))
            x = change(place, functional.relu(self.encoder[after](low)))
        for place, (name, further) in enumerate(UNPOOLS, 1 + self.pools):
            low = functional.relu(self.decoder[name](x))
            original, details = kept.pop()
            x = torch.cat([*undone(low, details), original], dim=1)
            for name in further:
                x = functional.relu(self.decoder[name](x))
            x = change(place, x)
        return self.decoder["conv1_1"](x)


def undone(low: Tensor, details: Tensor) -> Tensor:
    """Return what each band alone composes to, [4, N, C, H, W]: the low one, then the details."""
    bands = torch.cat([low[None], details])
    alone = torch.eye(len(bands), dtype=low.dtype, device=low.device)
    parts = torch.einsum("ab,b...->ab...", alone, bands)
    return torch.stack([compose(part[0], part[1:]) for part in parts])


def load(folder: Path) -> Wct2:
    """Read the network from the folder of its authors' files.

    Raises
    ------
    ModelfixError
        If a file is missing or is no such thing.
    """
    net = Wct2()
    for name, file in FILES.items():
        path, part = folder / file, getattr(net, name)
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
            # The files hold the constant Haar filters too.
            part.load_state_dict({key: found[key] for key in part.state_dict()})
        except FileNotFoundError:
            raise ModelfixError(
                f"{path}: there is no such file; give the folder that holds WCT2's "
                f"{' and '.join(FILES.values())}."
            ) from None
        except Exception as error:  # of many kinds, depending on what the file is
            raise ModelfixError(f"{path}: holds no weights of WCT2's {name}.") from error
    return net.requires_grad_(False)
