"""Step ``ingest``: raw items to dataset shards; only new files are read."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks import modalities
from tokenloom.tasks.data import ingest as ingesting
from tokenloom.tasks.data.found import found as told
from tokenloom.tasks.runtime.data_checks import check_data
from tokenloom.tasks.steps.base import Context, Given, Inputs, Later, Planned, Step
from tokenloom.tasks.store.artifacts import Outcome, Store


def needs(_config: RunConfig, _store: Store) -> dict[str, str]:
    """Nothing: the source is not in the store."""
    return {}


def plan(context: Context, _inputs: Inputs) -> Given | Later:
    """The dataset of the source as it is now, or why it has to be made."""
    data = context.config.data
    if data.classes is not None:
        try:
            modalities.kind(data.kind).open_source(data)
        except ConfigError as error:
            return Later(f"{error}; until then the run is checked for data.classes={data.classes}")
    found = ingesting.scan(data, context.store)
    if found.record is None:
        return Later(found.reason)
    return Given(found.record.artifact, f"complete, nothing new in the source: {told(found.record)}")


def run(context: Context, _inputs: Inputs) -> Outcome:
    """Make the dataset, or find it, and see that it does for the rest of the run."""
    made = ingesting.ingest(context.config.name, context.config.data, context.store, context.report, context.cluster)
    check_data(context.config, context.store.record(made.artifact), context.store)
    return made


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Refuse a dataset that is there and does not do for the rest of the run."""
    if (dataset := planned["dataset"].artifact) is not None:
        check_data(context.config, context.store.record(dataset), context.store)


def classes(context: Context, planned: Mapping[str, Planned]) -> int:
    """Number of classes in the data, also before it is ingested, or before it is there.

    Raises:
        ConfigError: it has another number than ``data.classes`` says, or it is not there and nothing says its number.
    """
    dataset, data = planned["dataset"].artifact, context.config.data
    if dataset:
        found = len(context.store.record(dataset).notes["classes"])
    else:
        try:
            found = len(modalities.kind(data.kind).open_source(data).classes)
        except ConfigError:
            if data.classes is None:
                raise
            found = data.classes
    if data.classes not in (None, found):
        raise ConfigError(f"data.classes={data.classes}: {data.source} has {found} classes; mend data.source, or leave data.classes out")
    return found


INGEST = Step("ingest", "dataset", "Raw items to dataset shards; only new files are read.", needs, plan, run, check)
