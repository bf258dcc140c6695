"""The network of WCT2 from files of its authors' form, against a transcription of its layers."""

import pytest
import torch
from modelfix_core.errors import ModelfixError
from modelfix_deeprepair import DeepRepair, wct2
from modelfix_deeprepair.autoencoder import WaveStyle
from torch.nn import functional


@pytest.fixture(scope="module")
def files():
    """Random weights by the names of the published files, the Haar filters among them."""
    rng = torch.Generator().manual_seed(0)
    parts = {}
    for part, convolutions in wct2.CONVOLUTIONS.items():
        parts[part] = {}
        for name, (inputs, outputs) in convolutions.items():
            kernel = torch.randn(outputs, inputs, 3, 3, generator=rng) * (2 / (9 * inputs)) ** 0.5
            parts[part][f"{name}.weight"] = kernel
            parts[part][f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=rng)
    parts["encoder"]["conv0.weight"] = torch.randn(3, 3, 1, 1, generator=rng)
    parts["encoder"]["conv0.bias"] = torch.randn(3, generator=rng)
    for part, name in (("encoder", "pool"), ("decoder", "recon_block")):
        for number, channels in enumerate((64, 128, 256), 1):
            for band, kernel in zip(("LL", "LH", "HL", "HH"), haar(), strict=True):
                weight = kernel.expand(channels, 1, 2, 2)
                parts[part][f"{name}{number}.{band}.weight"] = weight
    return parts


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wct2")
    for part, weights in files.items():
        torch.save(weights, folder / wct2.FILES[part])
    return folder


def haar():
    """The four filters of 2 x 2: low, differences of columns, of rows and of both."""
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 1.0])
    pairs = ((low, low), (low, high), (high, low), (high, high))
    return [torch.outer(rows, columns) / 2 for rows, columns in pairs]


def transcribed(files, x):
    """The layers of the published network one after the other, by convolutions alone."""
    encoder, decoder = files["encoder"], files["decoder"]

    def conv(part, name, x):
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, part[f"{name}.weight"], part[f"{name}.bias"])

    def pool(number, x):
        names = (f"pool{number}.{band}.weight" for band in ("LL", "LH", "HL", "HH"))
        return [functional.conv2d(x, encoder[n], stride=2, groups=x.shape[1]) for n in names]

    def unpool(number, bands, original):
        names = (f"recon_block{number}.{band}.weight" for band in ("LL", "LH", "HL", "HH"))
        undone = [
            functional.conv_transpose2d(band, decoder[n], stride=2, groups=band.shape[1])
            for n, band in zip(names, bands, strict=True)
        ]
        return torch.cat([*undone, original], dim=1)

    x = functional.conv2d(x, encoder["conv0.weight"], encoder["conv0.bias"])
    skips = {}
    stages = (("conv1_1", "conv1_2"), ("conv2_1", "conv2_2"))
    for number, names in enumerate((*stages, ("conv3_1", "conv3_2", "conv3_3", "conv3_4")), 1):
        for name in names:
            x = conv(encoder, name, x).relu()
        skips[number] = x
        x, *details = pool(number, x)
        skips[-number] = details
    x = conv(encoder, "conv4_1", x).relu()
    x = conv(decoder, "conv4_1", x).relu()
    x = unpool(3, [x, *skips[-3]], skips[3])
    for name in ("conv3_4_2", "conv3_3", "conv3_2", "conv3_1"):
        x = conv(decoder, name, x).relu()
    x = unpool(2, [x, *skips[-2]], skips[2])
    for name in ("conv2_2_2", "conv2_1"):
        x = conv(decoder, name, x).relu()
    x = unpool(1, [x, *skips[-1]], skips[1])
    return conv(decoder, "conv1_1", conv(decoder, "conv1_2_2", x).relu())


def test_network_is_the_published_one(files, folder, pictures):
    x = pictures(2, (3, 24, 16))
    torch.testing.assert_close(wct2.load(folder)(x), transcribed(files, x), rtol=1e-4, atol=1e-4)


def test_style_is_transferred_at_seven_places(folder, pictures):
    places = []
    wct2.load(folder)(pictures(1, (3, 32, 32)), lambda _, x: places.append(x.shape[1:3]) or x)
    assert places == [(64, 32), (128, 16), (256, 8), (512, 4), (256, 8), (128, 16), (64, 32)]


def test_own_style_leaves_plain_reconstruction(folder, pictures):
    x = pictures(2, (3, 16, 16)).double()
    net = wct2.load(folder).double()
    own = WaveStyle(net, x, 1.0)(x, torch.arange(2))
    torch.testing.assert_close(own, net(x).clamp(0, 1), atol=1e-6, rtol=0)
    other = WaveStyle(net, x, 1.0)(x, torch.tensor([1, 0]))
    assert float((other - own).abs().mean()) > 1e-3


def test_fixing_with_these_files(folder, small_task):
    task = small_task()
    approach = DeepRepair(
        backend="wct2", wct2_weights=folder, style_fraction=0.005, epochs=1, learning_rates=(1e-3,)
    )
    [*_, last] = approach.candidates(task)
    assert last.weights


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(ModelfixError, match="there is no such file; give the folder"):
        wct2.load(tmp_path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / wct2.FILES["encoder"])
    with pytest.raises(ModelfixError, match="holds no weights of WCT2's encoder"):
        wct2.load(tmp_path)


@pytest.mark.parametrize("options", [{"backend": "wct2"}, {"wct2_weights": "folder"}])
def test_files_and_backend_go_together(options):
    with pytest.raises(ModelfixError, match="go together"):
        DeepRepair(**options)
