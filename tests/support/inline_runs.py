"""Whole flow runs in one process: no Ray, no pages for Prefect, a registry that is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from databases import empty_database

from tokenloom.configs.schema import ClusterConfig, RunConfig
from tokenloom.flows.pipeline import pipeline
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.tasks.modalities.image.judging.features import Protocol
from tokenloom.tasks.runtime.pool import Call
from tokenloom.tasks.store.artifacts import Store
from tokenloom.tasks.training.train_loop import train

CPU = ClusterConfig(execution=ExecutionSettings(workers=1, device="cpu"))


def in_process(actor: type, given: tuple[Any, ...], calls: Sequence[Call], root: Path, cluster: ClusterConfig, **_: Any) -> Iterator[Any]:
    """What a pool of actors does, with one object and one call after another."""
    worker = actor(*given)
    for call in calls:
        yield call.key, getattr(worker, call.method)(*call.arguments)


def fit_here(job: Any, *_: Any) -> dict[str, Any]:
    return train(job)


@pytest.fixture(name="here")
def here_fixture(store: Store) -> Iterator[Store]:
    """A store with MLflow's tables, in which no step starts Ray and no page is sent to Prefect."""
    (store.root / "mlflow.db").write_bytes(empty_database())
    replaced = {
        "modalities.image.judging.features.PROTOCOL": Protocol(steps=5),
        "training.distributed._fit": fit_here,
        "data.extract.shared_out": in_process,
        "modalities.image.judging.sampling_actor.shared_out": in_process,
    }
    with ExitStack() as patches:
        for name, stand_in in replaced.items():
            patches.enter_context(mock.patch(f"tokenloom.tasks.{name}", stand_in))
        for what in ("table", "markdown", "image", "link"):
            patches.enter_context(mock.patch(f"tokenloom.flows.pages.create_{what}_artifact"))
        yield store


def scheduled(config: RunConfig, store: Store) -> tuple[dict[str, dict[str, Any]], str]:
    """One flow run: its rows by step, and the message of its state."""
    state = pipeline.fn(config, CPU, str(store.root), store.uri)
    return {row["name"]: row for row in state.data}, state.message or ""


def ran(rows: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, row in rows.items() if row["status"] == "ran"]
