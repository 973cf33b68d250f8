"""Processes of tests that start in milliseconds: forks of one process that has imported torch and the toy, and has no threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["forks_ready"])


def _ensure_server() -> None:
    """Start the process that is forked; it finds our modules by the environment alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class Started:
    """``function(*given)`` in a process and a process group of its own; the function must be importable.

    Attributes:
        pid: of the process, and of its group.
    """

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        _ensure_server()
        self._log = Path(tempfile.mkdtemp(prefix="forks-")) / "log"
        self._process = _server.Process(target=_call, args=(str(self._log), function, given))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """How it ended (0: well, below: by which signal); None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int | None:
        """Its end, as of ``poll``; what lasts longer is killed."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
        return self.poll()

    def kill(self) -> None:
        """Kill it and all that it started."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.join()

    def said(self) -> str:
        """The end of what it wrote on standard error."""
        return self._log.read_text()[-3000:] if self._log.exists() else ""


def _call(log: str, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.setsid()
    with open(log, "w") as file:
        os.dup2(file.fileno(), 2)
    import torch

    torch.set_num_threads(1)
    try:
        function(*given)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
