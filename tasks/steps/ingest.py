"""Step ``ingest``: raw items to dataset shards; only new files are read."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks import modalities
from tokenloom.tasks.data import ingest as ingesting
from tokenloom.tasks.steps.base import Context, Given, Inputs, Later, Planned, Step
from tokenloom.tasks.store.artifacts import Outcome, Store


def needs(_config: RunConfig, _store: Store) -> dict[str, str]:
    """Nothing: the source is not in the store."""
    return {}


def plan(context: Context, _inputs: Inputs) -> Given | Later:
    """The dataset of the source as it is now, or why it has to be made."""
    found = ingesting.scan(context.config.data, context.store)
    if found.record is None:
        return Later(found.reason)
    return Given(found.record.artifact, found.reason or "complete, nothing new in the source")


def run(context: Context, _inputs: Inputs) -> Outcome:
    """Make the dataset, or find it."""
    return ingesting.ingest(context.config.name, context.config.data, context.store, context.report)


def classes(context: Context, planned: Mapping[str, Planned]) -> int:
    """Number of classes in the data, also before it is ingested."""
    dataset = planned["dataset"].artifact
    return len(
        context.store.record(dataset).notes["classes"]
        if dataset
        else modalities.kind(context.config.data.kind).open_source(context.config.data).classes
    )


INGEST = Step("ingest", "dataset", "Raw items to dataset shards; only new files are read.", needs, plan, run)
