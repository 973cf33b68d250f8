"""Steps ``train_tokenizer`` and ``train_base``: the tokenizer of a run, and the one that it depends on.

A base is a tokenizer like any other: what another run trains as its tokenizer is found again here, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenloom.configs.schema import RunConfig, TokenizerConfig
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.checks import check_tokenizer, check_warm_start, depends_on
from tokenloom.tasks.steps import ingest
from tokenloom.tasks.steps.base import Context, Given, Inputs, Planned, Step, roles, used
from tokenloom.tasks.store.artifacts import Artifact, Outcome, StepSpec, Store, canonical_json
from tokenloom.tasks.training.distributed import plan_tokenizer, train_model

BASE = "tokenizer.base"  # what a record notes of a tokenizer that was trained for another one


def given_generator(config: RunConfig, store: Store) -> Given | None:
    """The generator that a run uses instead of training one (``generator.use``), if it does.

    Raises:
        ConfigError: it is not in the store.
    """
    if config.generator is None or config.generator.use is None:
        return None
    try:
        return Given(store.resolve(config.generator.use, "generator"), "generator.use")
    except ConfigError as error:
        raise ConfigError(f"generator.use: {error}") from error


def given_tokenizer(config: RunConfig, store: Store) -> Given | None:
    """The tokenizer that a run uses instead of training one, if it does: ``tokenizer.use``, ``tokenizer.pinned``, or that of
    ``generator.use``.

    Raises:
        ConfigError: the tokenizer in ``use`` is not in the store, or does not belong to the generator in use.
    """
    if generator := given_generator(config, store):
        return _of_generator(generator.artifact, config.tokenizer, store)
    return _given(config, store)


def _of_generator(generator: Artifact, section: TokenizerConfig | None, store: Store) -> Given:
    """The tokenizer of a generator in use, which a run may name too."""
    theirs = store.record(generator).inputs["tokenizer"]
    if section is not None and (named := store.resolve(section.use or "", "tokenizer")) != theirs:
        raise ConfigError(f"tokenizer.use: {named.id} is not the tokenizer of {generator.id}, which is {theirs.id}: leave tokenizer out")
    return Given(theirs, "tokenizer of generator.use")


def _given(config: RunConfig, store: Store) -> Given | None:
    section = config.codec
    if section.use is not None:
        try:
            return Given(store.resolve(section.use, "tokenizer"), "tokenizer.use")
        except ConfigError as error:
            raise ConfigError(f"tokenizer.use: {error}") from error
    if section.pinned and (first := _pinned(config.name, section, store)) is not None:
        return Given(first, "tokenizer.pinned")
    return None


def _pinned(name: str, section: TokenizerConfig, store: Store) -> Artifact | None:
    """The first tokenizer that the run of this name trained from this recipe, whatever the data was then."""
    depends_on(section)  # its errors name the field
    wanted = canonical_json(plan_tokenizer(name, section, Artifact("dataset", name, "0" * 12, ""), store).config)
    for record in store.records("tokenizer"):
        mine = record.artifact.name == name and record.notes.get("trained_as") != BASE
        if mine and canonical_json(record.config) == wanted:
            return record.artifact
    return None


def given_base(config: RunConfig, store: Store) -> Given | None:
    """The tokenizer that the run's tokenizer depends on, if one is used (``tokenizer.base.use``).

    Raises:
        ConfigError: it is not in the store.
    """
    if config.tokenizer is None or config.codec.base is None or config.codec.base.use is None:
        return None
    try:
        return Given(store.resolve(config.codec.base.use, "tokenizer"), "tokenizer.base.use")
    except ConfigError as error:
        raise ConfigError(f"tokenizer.base.use: {error}") from error


def dependencies(config: RunConfig, store: Store) -> tuple[str, ...]:
    """Roles, besides the dataset, that training the run's tokenizer needs: ``base``, ``features``; none for one that is given.

    Raises:
        ConfigError: a base that is missing or not needed.
    """
    return () if given_tokenizer(config, store) else depends_on(config.codec)


def needs(config: RunConfig, store: Store) -> dict[str, str] | None:
    """The dataset, and what the recipe depends on."""
    return None if config.density is not None else roles("dataset", *dependencies(config, store))


def needs_base(config: RunConfig, store: Store) -> dict[str, str] | None:
    """The dataset, where the run's tokenizer depends on another one."""
    return roles("dataset") if config.density is None and "base" in dependencies(config, store) else None


def plan(context: Context, inputs: Inputs) -> StepSpec | Given:
    """The training of the run's tokenizer on what it depends on, or the tokenizer that it uses."""
    config, store = context.config, context.store
    if given := given_tokenizer(config, store):
        return given
    start = _start(config, store)
    return plan_tokenizer(config.name, config.codec, inputs["dataset"], store, inputs.get("base"), inputs.get("features"), start)


def _start(config: RunConfig, store: Store) -> Artifact | None:
    """The tokenizer whose weights the training starts from; None for fresh weights.

    Raises:
        ConfigError: it is not in the store, or the run names itself.
    """
    wanted = config.codec.warm_start
    if wanted is None:
        return None
    if wanted == config.name:
        raise ConfigError(f"tokenizer.warm_start={wanted!r} is this run: each of its tokenizers would start another; give NAME-FINGERPRINT")
    try:
        return store.resolve(wanted, "tokenizer")
    except ConfigError as error:
        raise ConfigError(f"tokenizer.warm_start: {error}") from error


def plan_base(context: Context, inputs: Inputs) -> StepSpec | Given:
    """The training of the tokenizer that the run's tokenizer depends on, or the one that it uses."""
    config, store = context.config, context.store
    assert config.codec.base is not None, "a run without a base has no such step"
    if given := given_base(config, store):
        return given
    spec = plan_tokenizer(f"{config.name}-base", config.codec.base, inputs["dataset"], store)
    return replace(spec, notes={**spec.notes, "trained_as": BASE})


def run(context: Context, inputs: Inputs) -> Outcome:
    """Train the tokenizer, or find it."""
    return _trained(context, plan(context, inputs), TRAIN_TOKENIZER.name)


def run_base(context: Context, inputs: Inputs) -> Outcome:
    """Train the base, or find it."""
    return _trained(context, plan_base(context, inputs), TRAIN_BASE.name)


def _trained(context: Context, planned: StepSpec | Given, name: str) -> Outcome:
    if isinstance(planned, Given):
        return used(context, planned)
    # The record of a base says train_tokenizer; only the screen tells the two apart.
    return train_model(planned, context.store, context.cluster, context.tracker, lambda _, *rest: context.report(name, *rest))


def checked(context: Context, planned: Mapping[str, Planned]) -> tuple[ModelSpec, dict[str, Any]]:
    """Build the tokenizer without memory: its spec and its layout as plain data.

    Raises:
        ConfigError: a value that does not fit, naming the field.
    """
    given = (given_tokenizer(context.config, context.store), given_base(context.config, context.store))
    tokenizer, base = (context.store.record(each.artifact).notes["spec"] if each else None for each in given)
    spec, layout = check_tokenizer(context.config, ingest.classes(context, planned), tokenizer, base)
    if tokenizer is None and (start := _start(context.config, context.store)) is not None:
        theirs = ModelSpec.from_dict(context.store.record(start).notes["spec"])
        check_warm_start(spec, theirs, start.id, context.config.codec.fresh)
    return spec, layout


def check(context: Context, planned: Mapping[str, Planned]) -> None:
    """Build the tokenizer without memory."""
    checked(context, planned)


TRAIN_BASE = Step(
    "train_base", "base", "Train the tokenizer that the run's tokenizer depends on, or take the one that it uses.",
    needs_base, plan_base, run_base,
)  # fmt: skip
TRAIN_TOKENIZER = Step("train_tokenizer", "tokenizer", "Train the tokenizer, or take the one that it uses.", needs, plan, run, check)
