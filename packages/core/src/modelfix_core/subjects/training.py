"""Train the model of a subject (imports torch)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modelfix_core.dataset import Split
from modelfix_core.errors import ModelfixError
from modelfix_core.seeds import generator, seed_for
from modelfix_core.subjects.recipes import Recipe


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
        Of the order of the images.
    device : str
    on_step : callable
        Gets the steps done and their total.

    Yields
    ------
    int
        The epoch that is finished, from 1.
    """
    network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, fused=True)
    loss = nn.CrossEntropyLoss()
    rng = generator(seed, stage="order")
    starts = range(0, len(split), recipe.batch_size)
    total = recipe.epochs * len(starts)
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        order = rng.permutation(len(split))
        for step, start in enumerate(starts, 1):
            batch = order[start : start + recipe.batch_size]
            x = torch.from_numpy(split.images(batch)).to(device)
            y = torch.from_numpy(split.y[batch]).to(device)
            optimizer.zero_grad()
            loss(network(x), y).backward()
            optimizer.step()
            on_step((epoch - 1) * len(starts) + step, total)
        network.eval()
        yield epoch
