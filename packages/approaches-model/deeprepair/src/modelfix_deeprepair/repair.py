"""One run of DeepRepair on a task: styles, stylised copies, fine-tuning on views."""

import logging
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from modelfix_core.approach import Candidate, Evidence, Task
from modelfix_core.dataset import Split
from modelfix_core.joining import join
from modelfix_core.seeds import generator
from modelfix_core.torch import TorchModel, augment
from modelfix_core.torch.augment import COPY, SIGNED, Mixing, Variant
from modelfix_core.torch.training import FineTuning, Views, consistency, fine_tune_at
from modelfix_core.torch.wavelets import decompose
from torch import Tensor

from modelfix_deeprepair import autoencoder, wct2
from modelfix_deeprepair.approach import DeepRepairConfig
from modelfix_deeprepair.autoencoder import WaveStyle
from modelfix_deeprepair.features import FeatureStyle
from modelfix_deeprepair.haar import HaarStyle, padded
from modelfix_deeprepair.styles import find_styles
from modelfix_deeprepair.stylising import Styliser, copies_of, stylised

logger = logging.getLogger(__name__)

BASIC = (
    "autocontrast",
    "equalize",
    "posterize",
    "rotate",
    "solarize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
FURTHER = ("colour", "contrast", "brightness", "sharpness")
SEVERITY = 3.0
LEAST_LEVEL = 0.1
DECIDE_COPIES = (
    "n_fail",
    "k",
    "backend",
    "vgg_weights",
    "wct2_weights",
    "alpha",
    "levels",
    "eigenvalue",
    "autoencoder_epochs",
    "autoencoder_images",
    "style_fraction",
    "include_failures",
)
COMPARED = 1000  # training images with which the styles are compared


def proposals(
    net: TorchModel, task: Task, config: DeepRepairConfig
) -> Iterator[Candidate | Evidence]:
    """Yield the clusters of failures, the original model, and every epoch's."""
    train, repair = task.train, task.repair
    assert train is not None, "`DeepRepair.check` refuses tasks without training images"

    def progress(note: str) -> None:
        task.progress(0, 1, note)

    found = find_styles(
        task.model, repair, n_fail=config.n_fail, k=config.k, seed=task.seed, progress=progress
    )
    yield found.evidence(repair)
    styles = torch.from_numpy(repair.images(found.chosen)).to(task.device)
    counts = {"failures": found.failures, "styles": len(styles)}
    values = counts | style_shift(styles, train, task)
    logger.info(
        "%d failures, %d style images; their bands differ by %.2f (log), their colours by %.3f",
        *values.values(),
    )
    yield Candidate(weights={}, values=values)
    split = join(train, repair, found.members) if config.include_failures else train
    tune = partial(
        fine_tune_at,
        config.learning_rates,
        net,
        task,
        split,
        FineTuning.of(config),
        partial(consistency, weight=config.consistency),
    )
    if config.backend == "feature-adain":
        mixing = mixing_of(split.x.shape[1:], config, style=False)
        features = FeatureStyle(net, styles, style_share(config), config.alpha)
        yield from tune(features.views(views_of(config, mixing), mixing))
    else:
        mixing = mixing_of(split.x.shape[1:], config)
        copies = stylise(split, styles, task, config)
        yield from tune(views_of(config, mixing), copies)


# -- styles ----------------------------------------------------------------------------------------


def style_shift(styles: Tensor, train: Split, task: Task) -> dict[str, float]:
    """Return how the style images differ from training images.

    Returns
    -------
    dict of str to float
        ``band_shift``, the mean absolute logarithm of the ratio of the standard deviations of the
        four Haar bands, and ``colour_shift``, the distance of the mean colours in [0, 1].
    """
    rng = generator(task.seed, stage="style-shift")
    index = np.sort(rng.permutation(len(train))[:COMPARED])
    images = torch.from_numpy(train.images(index)).to(task.device)
    bands, colours = [], []
    for part in (styles, images):
        low, details = decompose(padded(part, 2))
        stacked = torch.cat([low[None], details]).flatten(2)
        bands.append(stacked.std(dim=-1, correction=0).mean(dim=1).clamp(min=1e-6).log())
        colours.append(part.mean(dim=(0, 2, 3)))
    return {
        "band_shift": float((bands[0] - bands[1]).abs().mean()),
        "colour_shift": float((colours[0] - colours[1]).norm()),
    }


def stylise(split: Split, styles: Tensor, task: Task, config: DeepRepairConfig) -> Split:
    """Return the stylised copy of each image, of a style drawn from all classes' styles."""
    rng = generator(task.seed, stage="assignment")
    count = round(config.style_fraction * len(split))
    rows = np.sort(rng.permutation(len(split))[:count])
    index = rng.integers(len(styles), size=count)
    identity = {name: str(getattr(config, name)) for name in DECIDE_COPIES}
    images = stylised(
        split,
        rows,
        index,
        partial(styliser_of, config, styles, split, task),
        device=task.device,
        folder=task.folder,
        identity=identity | {"seed": task.seed, "model": task.model.hash, "images": len(split)},
        progress=lambda note: task.progress(0, 1, note),
    )
    return copies_of(split, rows, images)


def styliser_of(config: DeepRepairConfig, styles: Tensor, split: Split, task: Task) -> Styliser:
    """Make what the options ask for; our autoencoders are trained on the images of the split."""
    if config.backend == "haar":
        return HaarStyle(styles, config.levels, config.eigenvalue, config.alpha)
    if config.backend == "wct2":
        assert config.wct2_weights is not None, "the options were checked"
        return WaveStyle(wct2.load(config.wct2_weights).to(task.device), styles, config.alpha)
    if config.backend == "vgg-ae":
        assert config.vgg_weights is not None, "the options were checked"
        net = autoencoder.of_vgg(task.seed, config.vgg_weights)
    else:
        net = autoencoder.small(task.seed)
    error = autoencoder.learn(
        net,
        split,
        epochs=config.autoencoder_epochs,
        images=config.autoencoder_images,
        seed=task.seed,
        device=task.device,
        progress=lambda note: task.progress(0, 1, note),
    )
    logger.info("the autoencoder reconstructs images up to %.4f (root mean square)", error**0.5)
    return WaveStyle(net, styles, config.alpha)


# -- views -----------------------------------------------------------------------------------------


def mixing_of(shape: tuple[int, ...], config: DeepRepairConfig, style: bool = True) -> Mixing:
    """Return how views are drawn: every operation alike, at levels up to AugMix's severity 3.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width.
    config : DeepRepairConfig
    style : bool
        Whether the stylised copy is one of the operations; else this is AugMix.
    """
    names = operations(shape, config) + ((COPY,) if style else ())
    variants, probabilities = [], []
    for name in names:
        signs = (1, -1) if name in SIGNED else (1,)
        variants += [Variant(name, SEVERITY, sign) for sign in signs]
        probabilities += [1 / len(names) / len(signs)] * len(signs)
    return Mixing(
        tuple(variants),
        tuple(probabilities),
        config.width,
        config.depth,
        span=SEVERITY - LEAST_LEVEL,
    )


def operations(shape: tuple[int, ...], config: DeepRepairConfig) -> tuple[str, ...]:
    """Return the operations beside the style; grey images have no colour."""
    further = FURTHER[shape[0] == 1 :]
    return BASIC + (further if config.all_ops else ())


def style_share(config: DeepRepairConfig) -> float:
    """Return the probability that the style is drawn in a chain."""
    count = len(BASIC) + 1 + (len(FURTHER) if config.all_ops else 0)
    lengths = np.arange(1, config.depth + 1)
    return float(1 - np.mean((1 - 1 / count) ** lengths))


def views_of(config: DeepRepairConfig, mixing: Mixing) -> Views:
    """Return what makes the images of a batch and their views, [1 + views, N, C, H, W]."""

    def views(
        x: Tensor, _y: Tensor, rng: np.random.Generator, copies: Tensor | None = None
    ) -> Tensor:
        if copies is None or not config.align_style:
            x = augment.crop_and_flip(x, rng, config.crop, config.flip)
        else:
            both = augment.crop_and_flip(
                torch.cat([x, copies], dim=1), rng, config.crop, config.flip
            )
            x, copies = both.chunk(2, dim=1)
        drawn = augment.views(x, mixing, rng, config.views, copies=copies)
        return torch.cat([x[None], drawn])

    return views
