"""Step ``train_density``: a likelihood of the data itself, or a bound of one; it needs no tokens."""

from __future__ import annotations

from collections.abc import Mapping

from tokenloom.configs.schema import RunConfig
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.checks import check_density, check_used_density
from tokenloom.tasks.steps import ingest
from tokenloom.tasks.steps.base import Context, Given, Inputs, Planned, Step, roles, used
from tokenloom.tasks.store.artifacts import Outcome, StepSpec, Store
from tokenloom.tasks.training.distributed import train_model
from tokenloom.tasks.training.plans import plan_density


def needs(config: RunConfig, _store: Store) -> dict[str, str] | None:
    """The dataset alone; nothing where a density is used."""
    if config.density is None:
        return None
    return {} if config.density.use is not None else roles("dataset")


def given_density(config: RunConfig, store: Store) -> Given | None:
    """The density that a run uses instead of training one (``density.use``), if it does.

    Raises:
        ConfigError: it is not in the store.
    """
    if config.density is None or config.density.use is None:
        return None
    try:
        return Given(store.resolve(config.density.use, "density"), "density.use")
    except ConfigError as error:
        raise ConfigError(f"density.use: {error}") from error


def plan(context: Context, inputs: Inputs) -> StepSpec | Given:
    """The training of the density, or the one that the run uses."""
    assert context.config.density is not None, "a run without a density has no such step"
    if given := given_density(context.config, context.store):
        return given
    return plan_density(context.config.name, context.config.density, inputs["dataset"])


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the density, or find it."""
    planned = plan(context, inputs)
    if isinstance(planned, Given):
        return used(context, planned)
    return train_model(planned, context.store, context.cluster, context.tracker, context.report)


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the density without memory, or see that the one in use models data like this."""
    classes = ingest.classes(context, planned)
    if given := given_density(context.config, context.store):
        check_used_density(context.config, classes, ModelSpec.from_dict(context.store.record(given.artifact).notes["spec"]))
    else:
        check_density(context.config, classes)


TRAIN_DENSITY = Step(
    "train_density", "density", "Train a likelihood of the data itself, or take the one that it uses.", needs, plan, run, check
)
