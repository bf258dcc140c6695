"""One cell as a process: tied to who started it, ended as a whole, its last words kept."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence

from modelfix.environments import clean_environ

PATIENCE = 10.0  # seconds that an interrupted process gets to end by itself
LAST_WORDS = 16_384  # bytes of its output that are kept


class Process:
    """``python <arguments>`` in a process group of its own.

    It holds the reading end of a pipe as its standard input, of which this process holds the other:
    however this process ends, the pipe breaks, and `tie` on the other side ends the group.

    Parameters
    ----------
    arguments : sequence of str
        For this Python.
    environ : mapping of str to str
        Variables in addition to this process's.
    """

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  as long as this object
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
            env={**clean_environ(), **(environ or {})},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """Return the exit code, None while it runs; what it left behind is ended with it."""
        code = self._popen.poll()
        if code is not None:
            self._signal(signal.SIGKILL)
        return code

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        self._popen.wait()
        return self.poll() or 0

    @property
    def output(self) -> str:
        """The end of what it wrote."""
        size = os.fstat(self._output.fileno()).st_size
        start = max(0, size - LAST_WORDS)
        return os.pread(self._output.fileno(), LAST_WORDS, start).decode(errors="replace")

    def interrupt(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGINT)

    def stop(self, patience: float = PATIENCE) -> None:
        """Ask it to end, and end it if it does not within `patience` seconds."""
        if self._popen.poll() is not None:
            return
        self.interrupt()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(patience)
        self._signal(signal.SIGKILL)
        self._popen.wait()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """Run ``python <arguments>``; return its exit code and the end of what it wrote."""
    process = Process(arguments)
    try:
        return process.wait(), process.output
    finally:
        process.stop()


def tie() -> None:
    """End this process's group when the process that started it is gone, or asks for it.

    What was started in the background ignores interrupts; what it starts would inherit that.
    """

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=watch, daemon=True, name="tie").start()
