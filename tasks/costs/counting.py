"""The cost of a training that has begun, counted beside it, so that what it takes stands next to what was planned."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from tokenloom.models.core.build import ModelSpec
from tokenloom.tasks.training.job import TrainJob

log = logging.getLogger(__name__)

#: Seconds that a finished training waits for its count at most.
PATIENCE = 60.0


class Counting:
    """Counts in a thread of its own; the workers are other processes.

    Args:
        job: the training.
        others: specs of the trained models that it is given, by role.
    """

    def __init__(self, job: TrainJob, others: Mapping[str, ModelSpec]) -> None:
        self._found: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._count, args=(job, others), name="counting", daemon=True)
        self._thread.start()

    def _count(self, job: TrainJob, others: Mapping[str, ModelSpec]) -> None:
        from tokenloom.tasks.costs.cost import cost_of

        try:
            cost = cost_of(ModelSpec.from_dict(job.spec), "", job.settings, job.execution, others=others)
        except Exception as error:  # a training needs no count
            log.info("the cost of %s could not be counted: %s", job.folder, error)
            return
        self._found = {"flops_per_item": cost.flops_per_item, "memory_bytes": cost.memory_bytes}

    def result(self) -> dict[str, Any]:
        """``flops_per_item`` and ``memory_bytes`` as planned; empty where they could not be counted in time."""
        self._thread.join(PATIENCE)
        return self._found
