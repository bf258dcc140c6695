"""A process that trains submodels: ``python -m modelfix_apricot.worker FOLDER NUMBER ...``."""

import os
import sys
import threading
from pathlib import Path

import torch
from modelfix_core.torch import load

from modelfix_apricot.submodels import Plan, train_one


def main() -> None:
    """Train the submodels named on the command line, after the plan in the folder."""
    folder, numbers = Path(sys.argv[1]), [int(number) for number in sys.argv[2:]]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    plan, model, train = Plan.load(folder)
    net, progress = load(model), plan.progress()
    for number in numbers:

        def on_step(done: int, number: int = number) -> None:
            progress[number] = done

        weights, right = train_one(net, train, number, plan.config, plan.seed, on_step)
        plan.write(number, weights, right)


def _end_with_parent() -> None:
    """Wait for the end of standard input, which comes when the process that started us is gone."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
