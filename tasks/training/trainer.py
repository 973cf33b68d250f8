"""Ray Train's trainer as a step uses it: its resources, its folder, its restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from tokenloom.configs.schema import ClusterConfig
from tokenloom.tasks.runtime.cluster import Session
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.job import TrainJob

_CLEANER = "PlacementGroupCleanerCallback"


def trainer_of(
    worker: Callable[[dict[str, Any]], None], job: TrainJob, name: str, store: Store, cluster: ClusterConfig, current: Session
) -> Any:
    """A ``TorchTrainer`` that runs ``worker`` with the job on each of the cluster's training workers.

    Args:
        worker: what each worker runs, given ``{"job": job}``.
        job: what to train.
        name: of the run, for Ray's own files.
        store: where those go on a cluster; on this machine they go below the root.
        cluster: workers, their GPUs, and how many failures are survived.
        current: the session, started.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    base: Any = TorchTrainer

    class Trainer(base):
        """Without the cleaner where that cannot work: it asks the dashboard for actors and, with none, holds up each end by 12 s."""

        def _create_default_callbacks(self) -> list[Any]:
            found: list[Any] = super()._create_default_callbacks()
            return [one for one in found if current.dashboard or type(one).__name__ != _CLEANER]

    gpus = cluster.gpus_per_worker
    resources = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    home = str(store.root / "ray") if cluster.address == "local" else quote(store.storage.uri("ray"), safe=":/")
    return Trainer(
        worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=cluster.execution.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=home,
            failure_config=FailureConfig(max_failures=cluster.execution.max_failures),
        ),
    )
