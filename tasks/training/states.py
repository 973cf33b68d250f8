"""Which training state a run has: whole on every worker, or sharded."""

from __future__ import annotations

import torch

from tokenloom.models.core.protocols import Generator, Method
from tokenloom.models.core.settings import ExecutionSettings, TrainSettings
from tokenloom.tasks.training.train_state import TrainState


def state_of(model: Method, settings: TrainSettings, execution: ExecutionSettings, device: torch.device, workers: int) -> TrainState:
    """The state of a run on one of its workers: whole, or of a generator under ``sharding: fsdp`` this worker's part.

    Raises:
        ConfigError: a generator that cannot be sharded.
    """
    if execution.sharding == "ddp" or workers == 1 or not isinstance(model, Generator):
        return TrainState(model, settings)
    from tokenloom.tasks.training.sharding import ShardedState, check_sharded

    check_sharded(model, execution.compile)
    return ShardedState(model, settings, device, workers)
