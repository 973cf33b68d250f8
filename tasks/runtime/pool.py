"""A pool of Ray actors that hold a model each and share out calls: extraction and sampling run on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenloom.configs.schema import ClusterConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.cluster import check_room, session
from tokenloom.tasks.runtime.errors import StepError


@dataclass(frozen=True)
class Call:
    """One call of a method of an actor; ``key`` names its result."""

    key: Any
    method: str
    arguments: tuple[Any, ...]


def shared_out(
    actor: type,
    given: tuple[Any, ...],
    calls: Iterable[Call],
    root: Path,
    cluster: ClusterConfig,
    *,
    what: str,
    total: int,
    depth: int = 1,
    actors: int | None = None,
    gpus: float | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (key, result) of each call as the actors finish, in any order.

    Args:
        actor: class of the actors, made from ``given``: addresses and plain data.
        calls: in the order in which they begin; each is taken when an actor is free for it.
        what: the work in messages: ``sampling``.
        total: how many calls there are.
        depth: calls that one actor holds at once.
        actors: how many there are; those of the cluster file if not given.
        gpus: of each; those of the cluster file if not given.

    Raises:
        StepError: a call failed, or an actor died more often than it is restarted. (A ``ConfigError`` of a call stays one.)
    """
    with session(cluster, root) as current:
        ray, count = current.ray, min(actors or cluster.extract_actors, total)
        if gpus != 0:
            check_room(ray, cluster, count)
        options = {"num_cpus": 1, "num_gpus": cluster.gpus_per_worker if gpus is None else gpus, "max_restarts": 2, "max_task_retries": 2}
        made = ray.remote(max_concurrency=depth, **options)(actor)
        pool = [made.remote(*given) for _ in range(count)]
        idle = [each for _ in range(depth) for each in pool]  # each has a place for every call that it may hold
        waiting, left, running = iter(calls), total, dict[Any, tuple[Any, Any]]()
        try:
            while left or running:
                while left and idle:
                    call, worker, left = next(waiting), idle.pop(0), left - 1
                    running[getattr(worker, call.method).remote(*call.arguments)] = call.key, worker
                ready, _ = ray.wait(list(running), num_returns=1)
                key, worker = running.pop(ready[0])
                idle.append(worker)
                yield key, _result(ray, ready[0], what)
        finally:
            for each in pool:
                ray.kill(each)


def _result(ray: Any, reference: Any, what: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, (StepError, ConfigError)) else StepError(f"{what} failed: {cause!r}") from error
    except ray.exceptions.RayError as error:
        raise StepError(f"{what}: a worker died again and again: {str(error).strip().splitlines()[-1]}; run again to go on") from error
