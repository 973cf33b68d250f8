"""The job of a training: one value with all that a worker needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.data.loader import Rows


@dataclass(frozen=True)
class TrainJob:
    """All that a worker needs, as plain data and addresses: no relative path, no open handle.

    ``folder`` is the artifact's folder in ``store``; ``root`` the worker's local folder for caches and scratch files;
    ``adopt`` the folders of the artifacts that the model depends on, by role, and of the one that it starts from (``warm_start``),
    but for the parts that are ``fresh``.
    """

    spec: dict[str, Any]
    settings: TrainSettings
    execution: ExecutionSettings
    rows: Rows
    validation: Rows | None
    store: str
    folder: str
    root: str
    adopt: dict[str, str] | None
    fingerprint: str
    fresh: tuple[str, ...] = ()
