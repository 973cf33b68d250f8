"""Step ``train_density``: a likelihood of the data itself, or a bound of one; it needs no tokens."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks.runtime.checks import check_density
from tokenloom.tasks.steps import ingest
from tokenloom.tasks.steps.base import Context, Inputs, Planned, Step, roles
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store
from tokenloom.tasks.training.distributed import train_model
from tokenloom.tasks.training.plans import plan_density


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """The dataset alone."""
    return None if config.density is None else roles("dataset")


def plan(context: Context, inputs: Inputs) -> StepSpec:
    """The training of the density."""
    assert context.config.density is not None, "a run without a density has no such step"
    return plan_density(context.config.name, context.config.density, inputs["dataset"])


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the density, or find it."""
    return train_model(plan(context, inputs), context.store, context.cluster, context.tracker, context.report)


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the density without memory."""
    check_density(context.config, ingest.classes(context, planned))


TRAIN_DENSITY = Step("train_density", "density", "Train a likelihood of the data itself.", needs, plan, run, check)
