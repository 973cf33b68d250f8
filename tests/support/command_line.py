"""The command line as a person runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def tokenloom(root: Path, *arguments: str, start: tuple[str, ...] = ("-m", "tokenloom.flows.cli.main")) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TOKENLOOM_ROOT": str(root), "PYTHONPATH": str(Path(__file__).parents[2])}
    for name in ("TOKENLOOM_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        environment.pop(name, None)
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, cwd=root, env=environment)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-4000:]
    made: dict[str, Any] = json.loads(done.stdout)
    return made
