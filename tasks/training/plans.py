"""What a training step is made from: recipe, resolved config, settings and inputs, as a ``StepSpec``.

A *stage* goes on from a trained generator: the same model, from its weights, under another objective or on other settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from tokenloom.configs.schema import BaseConfig, DensityConfig, TokenizerConfig, identity
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError, from_dict
from tokenloom.models.core.edits import override
from tokenloom.models.core.settings import TrainSettings
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store

VERSION = 1


def plan_training(
    kind: str, name: str, recipe: str, args: dict[str, Any], edits: dict[str, Any], train: TrainSettings | None, inputs: dict[str, Artifact]
) -> StepSpec:
    """The step ``train_KIND`` of a recipe.

    Raises:
        ConfigError: unknown recipe, argument or path, or a value that does not fit.
    """
    resolved = ModelSpec(kind, recipe, args, edits).config().to_dict()
    # How the config was arrived at and how often things are reported are noted, so that the body needs nothing but the step.
    notes = {"recipe": recipe, "args": args, "set": edits, "train": train and json.loads(json.dumps(asdict(train)))}
    config = {"recipe": recipe, "config": resolved, "train": train and identity(train)}
    return StepSpec(f"train_{kind}", VERSION, kind, name, config, inputs, notes)


def plan_tokenizer(
    name: str,
    config: BaseConfig,
    dataset: Artifact,
    _store: Store,
    base: Artifact | None = None,
    features: Artifact | None = None,
    warm_start: Artifact | None = None,
) -> StepSpec:
    """The step that trains a tokenizer on a dataset's images, and on the tokenizer or the classifier that it depends on.

    It starts from fresh weights, or from those of another tokenizer but for the parts that ``config`` has ``fresh``.
    Without ``config.train`` it is built only: a recipe that has nothing to train.

    Raises:
        ConfigError: unknown recipe, argument or path, or a value that does not fit.
    """
    assert config.recipe is not None, "a tokenizer in use is not trained"
    below = {role: artifact for role, artifact in (("base", base), ("features", features), ("warm_start", warm_start)) if artifact}
    spec = plan_training("tokenizer", name, config.recipe, config.args, config.set, config.train, {"dataset": dataset, **below})
    fresh = list(config.fresh) if isinstance(config, TokenizerConfig) else []
    return replace(spec, config={**spec.config, "fresh": fresh}) if fresh else spec


def plan_density(name: str, config: DensityConfig, dataset: Artifact) -> StepSpec:
    """The step that trains a density on a dataset's items.

    Raises:
        ConfigError: unknown recipe, argument or path, or a value that does not fit.
    """
    assert config.recipe is not None, "a density in use is not trained"
    assert config.train is not None, "a density that is trained has its settings"
    return plan_training("density", name, config.recipe, config.args, config.set, config.train, {"dataset": dataset})


def plan_stage(
    name: str,
    before: StepSpec,
    start: Artifact,
    train: TrainSettings,
    objective: Mapping[str, Any] | None = None,
    roles: Mapping[str, Artifact] | None = None,
    where: str = "stages",
) -> StepSpec:
    """The step that trains a generator further.

    Args:
        name: of the artifact.
        before: the step that made (or will make) the generator: a training or a stage.
        start: its artifact.
        train: settings of this stage.
        objective: as in a run file, ``{nll: {}}``; None keeps the generator's own.
        roles: trained models that the objective needs besides those of ``before``; ``reference`` is the generator itself unless given.
        where: the field of the run file, for messages.

    Raises:
        ConfigError: an unknown objective or field, a model without an objective, one that it cannot be trained with, or a role
            that nothing has.
    """
    config = from_dict(before.config["config"], where)
    if objective is not None:
        if not (is_dataclass(config) and "objective" in {field.name for field in fields(config)}):
            raise ConfigError(f"{where}.objective: {before.config['recipe']!r} has a loss of its own; leave objective out")
        try:
            config = override(config, {"objective": dict(objective)}, where)
        except ConfigError as error:
            raise ConfigError(f"{error}" if str(error).startswith(where) else f"{where}.objective: {error}") from error
    inputs = {role: artifact for role, artifact in before.inputs.items() if role in ("tokens", "tokenizer")}
    inputs |= {"warm_start": start} | dict(roles or {})
    if "reference" in config.needs:
        inputs.setdefault("reference", start)
    if missing := [role for role in config.needs if role not in inputs]:
        raise ConfigError(f"{where}: the objective needs a trained model in the role {missing[0]!r}, and the run has none")
    notes: dict[str, Any] = {key: before.notes[key] for key in ("recipe", "args", "set", "sample") if key in before.notes}
    notes["train"] = json.loads(json.dumps(asdict(train)))
    resolved = {"recipe": before.config["recipe"], "config": config.to_dict(), "train": identity(train)}
    return StepSpec("train_stage", VERSION, "generator", name, resolved, inputs, notes)


def roles_of(step: StepSpec) -> dict[str, Artifact]:
    """The trained models that a training is given, by the role that they have in it; a tokenizer's base is its ``tokenizer``."""
    data = ("dataset", "tokens", "warm_start")
    return {"tokenizer" if name == "base" else name: artifact for name, artifact in step.inputs.items() if name not in data}


def others_of(step: StepSpec, store: Store) -> dict[str, ModelSpec]:
    """Specs of the trained models that a training is given, by role."""
    records = {role: store.record(artifact) for role, artifact in roles_of(step).items()}
    return {role: ModelSpec.from_dict(record.notes["spec"]) for role, record in records.items() if "spec" in record.notes}
