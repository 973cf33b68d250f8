"""Databases of tracking servers that are made once."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tokenloom.tasks.tracking.tracker import Tracker


@cache
def empty_database() -> bytes:
    """MLflow's tables; making them takes longer than any of these tests."""
    with tempfile.TemporaryDirectory() as folder:
        Tracker(f"sqlite:///{folder}/mlflow.db", Path(folder), "x").client.search_registered_models()
        return Path(folder, "mlflow.db").read_bytes()
