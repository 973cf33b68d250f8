"""Cold starts: ``tokenloom --help`` and a run whose steps are all there, against Python itself with the same libraries' first import.

Processor seconds of the whole process; the ratio is to a bare ``python -c 'import click'`` for help, and to ``import torch`` for a run.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.timing import Compared

COMMAND = [sys.executable, "-m", "tokenloom.flows.cli.main"]


def seconds(command: list[str], root: Path) -> float:
    """Processor seconds of a command, with its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, cwd=root, env={**os.environ, "TOKENLOOM_ROOT": str(root / "place")})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Ratios of help and, unless quick, of a run with nothing to do."""
    found: dict[str, Any] = {}
    turns = 5 if quick else 11
    with tempfile.TemporaryDirectory(prefix="tokenloom-bench-") as folder:
        root = Path(folder)
        pairs = {"help": ([*COMMAND, "--help"], [sys.executable, "-c", "import click"])}
        if not quick:
            run = [*COMMAND, "run", "smoke_var", "--no-prefect"]
            seconds(run, root)
            pairs["run with nothing to do"] = (run, [sys.executable, "-c", "import torch"])
        for name, (ours, bare) in pairs.items():
            both: tuple[list[float], list[float]] = ([], [])
            for _ in range(turns):
                both[0].append(seconds(ours, root))
                both[1].append(seconds(bare, root))
            found[name] = Compared(tuple(both[0]), tuple(both[1])).row()
            print(f"{name}: {found[name]}", flush=True)
    return found
