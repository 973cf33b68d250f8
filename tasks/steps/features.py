"""Step ``features``: the network that judges samples, one for a dataset, whatever the method."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks import modalities
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """The dataset alone; kinds of signals that are judged without a network have no such step."""
    return roles("dataset") if modalities.kind(config.data.kind).needs_features else None


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """The network of the dataset under this protocol."""
    return modalities.kind(context.config.data.kind).plan_features(inputs["dataset"], context.config.evaluate, context.store)


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the network, or find it."""
    return modalities.kind(context.config.data.kind).features(plan(context, inputs), context.store, context.report)


def check(context: Context, _planned: Mapping[str, Planned]) -> None:
    """Refuse a protocol that cannot be kept."""
    plan(context, {"dataset": Artifact("dataset", context.config.name, "0" * 12, "")})


FEATURES = Step("features", "features", "The network that judges samples: one for a dataset, whatever the method.", needs, plan, run, check)
