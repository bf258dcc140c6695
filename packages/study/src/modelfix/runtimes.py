"""Which Python runs what: the approach's own, the one that trains, the one that attacks."""

import importlib.util
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from modelfix.environments import clean_environ, ensure, ensure_published
from modelfix.workspace import Workspace

GROUP = "modelfix.approaches"


class Runtimes:
    """Finds or makes the environments of a run, from the checkout where there is one."""

    def __init__(self) -> None:
        self.workspace = Workspace.find()

    def approach(self, name: str) -> Path:
        """Return the Python that runs the approach called `name`."""
        if self.workspace is not None and name in self.workspace.environments:
            return ensure(self.workspace, self.workspace.environments[name])
        if any(point.name == name for point in entry_points(group=GROUP)):
            return Path(sys.executable)
        return ensure_published(f"modelfix-{name}")

    def subjects(self) -> Path:
        """Return the Python that trains and exports subjects."""
        return self._part("core-torch", "modelfix-core", "[subjects]", "torchvision")

    def own(self, kind: str) -> Path:
        """Return the Python that reads a foreign model: ONNX here, others with their framework."""
        if kind == "keras":
            return self._part("core-keras", "modelfix-core", "[tensorflow]", "tensorflow")
        return self.subjects() if kind == "torch" else Path(sys.executable)

    def metrics(self) -> Path:
        """Return the Python that evaluates and attacks."""
        return self._part("metrics", "modelfix-metrics", "[attack]", "foolbox")

    def _part(self, environment: str, distribution: str, extras: str, mark: str) -> Path:
        if self.workspace is not None:
            return ensure(self.workspace, self.workspace.environments[environment])
        if importlib.util.find_spec(mark) is not None:
            return Path(sys.executable)
        return ensure_published(distribution, extras)


def run_module(
    python: Path, module: str, *arguments: str, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments``; its messages pass through, its output is returned.

    Raises
    ------
    subprocess.TimeoutExpired
        If it was not done after `timeout` seconds; it was killed then.
    """
    command = [str(python), "-m", module, *arguments]
    return subprocess.run(
        command, env=clean_environ(), stdout=subprocess.PIPE, text=True, check=False,
        timeout=timeout,
    )  # fmt: skip
