"""Train the model of a subject (imports torch)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.files import atomic_path
from modelfix_core.seeds import generator, seed_for
from modelfix_core.subjects.recipes import Recipe
from modelfix_core.torch.augment import crop_and_flip
from modelfix_core.torch.training import Feed


def check_device(device: str) -> None:
    """Raise `ModelfixError` if torch cannot compute on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelfixError(f"device {device!r} cannot be used ({reason}); use cpu.") from error


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Draw torch's fresh weights and dropout from `seed`; the global state is put back after."""
    devices = range(torch.cuda.device_count())
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with torch.random.fork_rng(devices), deterministic:
        torch.manual_seed(seed_for(seed=seed, stage="weights"))
        yield


def train(
    network: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    state: Path,
    on_step: Callable[[int, int], None],
) -> Iterator[int]:
    """Train `network` in place and hand it over, in evaluation mode, after every epoch.

    Parameters
    ----------
    network : nn.Module
        [N, C, H, W] in [0, 1] to logits.
    split : Split
    recipe : Recipe
    seed : int
        Of the order of the images and of their augmentation.
    device : str
    state : Path
        File that holds the state after the last finished epoch. An epoch is finished when the next
        one is asked for; a later call with the same arguments goes on after it as if it had never
        stopped.
    on_step : callable
        Gets the steps done and their total.

    Yields
    ------
    int
        The epoch that is finished, from 1.
    """
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network.to(device, memory_format=layout)
    optimizer = _optimizer(recipe, network)
    loss = nn.CrossEntropyLoss()
    feed = Feed(split, device)
    rng = generator(seed, stage="order")
    steps = math.ceil(len(split) / recipe.batch_size)
    total = recipe.epochs * steps
    mixed = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bf16-mixed"
    )
    finished = _resume(state, network, optimizer)
    for epoch in range(1, recipe.epochs + 1):
        order = rng.permutation(len(split))
        if epoch <= finished:
            continue
        network.train()
        draws = generator(seed, stage="augmentation", epoch=epoch)
        batches = feed.batches(order, recipe.batch_size)
        for step, (images, y) in enumerate(batches, (epoch - 1) * steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step, total)
            x = crop_and_flip(images, draws, recipe.crop_padding, recipe.flip)
            optimizer.zero_grad()
            with mixed:
                logits = network(x.contiguous(memory_format=layout))
            loss(logits.float(), y).backward()
            optimizer.step()
            on_step(step + 1, total)
        network.eval()
        yield epoch
        _save(state, network, optimizer, epoch)


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        network.parameters(),
        lr=rate,
        momentum=recipe.momentum,
        weight_decay=decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    state = {
        "epoch": epoch,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all(),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put back what `_save` wrote, if anything; return the number of finished epochs."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    torch.cuda.set_rng_state_all(state["random_cuda"])
    return state["epoch"]
