"""Sections of a run file that name a method and its training: tokenizers, generators, densities, and stages of a generator."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from tokenloom.configs.section import NAME, Section
from tokenloom.models.core import registry
from tokenloom.models.core.config import Added, ConfigError, Execution, Identity
from tokenloom.models.core.settings import TrainSettings


class Trained(Section):
    """Base of sections with a recipe and its training; ``train: {as: paper}`` is the published one, and fields beside it win."""

    where: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, data: Any) -> Any:
        train = data.get("train") if isinstance(data, dict) else None
        if not isinstance(train, dict) or "as" not in train:
            return data
        if train["as"] != "paper":
            raise ConfigError(f"train.as={train['as']!r}: write paper, or leave it out")
        changes = {name: value for name, value in train.items() if name != "as"}
        published = registry.get(str(data.get("recipe"))).training(data.get("args") or {}).given(changes, "train")
        return data | {"train": published | {"source": "paper"}}


class MethodConfig(Trained):
    """A recipe, its arguments, edits of the config that it returns, and its training."""

    recipe: Identity[str] = Field(description="a name from `tokenloom methods`")
    args: Identity[dict[str, Any]] = Field(default_factory=dict, description="arguments of the recipe function")
    set: Identity[dict[str, Any]] = Field(default_factory=dict, description="dotted paths in the config that it returns")
    train: Identity[TrainSettings]


class GeneratorConfig(Trained):
    """A generator to train, from fresh weights or from those of another one, or one to use: exactly one of ``recipe`` and ``use``.

    ``use`` takes an imported or trained generator as it is, with the tokenizer that belongs to it: the run evaluates and registers
    it, or trains it further in ``stages``.
    ``warm_start: champion`` starts on new tokens from the generator behind the alias ``champion``, if there is one; what this
    recipe has already made from the same tokens is kept, whatever it started from, so that unchanged data trains nothing.
    """

    recipe: Identity[str | None] = Field(None, description="a name from `tokenloom methods`")
    args: Identity[dict[str, Any]] = Field(default_factory=dict, description="arguments of the recipe function")
    set: Identity[dict[str, Any]] = Field(default_factory=dict, description="dotted paths in the config that it returns")
    train: Identity[TrainSettings | None] = Field(None, description="needed with recipe; leave it out with use")
    use: Added[str | None] = Field(None, description="artifact: the name of an import or a run, NAME-FINGERPRINT, or a unique prefix of it")
    warm_start: Identity[str | None] = Field(
        None, description="weights to start from: champion, or a generator artifact (NAME-FINGERPRINT, a prefix of it, a run's name)"
    )

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.recipe is None) == (self.use is None):
            raise ValueError("give either generator.recipe (train one) or generator.use (an artifact)")
        if self.recipe is not None and self.train is None:
            raise ValueError("generator.train is missing: give at least {steps: N}")
        changed = {"args": self.args, "set": self.set, "train": self.train, "warm_start": self.warm_start}
        if self.use is not None and (given := [name for name, value in changed.items() if value]):
            raise ValueError(f"generator.{given[0]} goes with generator.recipe: a generator in use is trained already; see stages")
        return self


class DensityConfig(Trained):
    """A density to train, or an imported or trained one to evaluate and register as it is: exactly one of ``recipe`` and ``use``."""

    recipe: Identity[str | None] = Field(None, description="a name from `tokenloom methods`")
    args: Identity[dict[str, Any]] = Field(default_factory=dict, description="arguments of the recipe function")
    set: Identity[dict[str, Any]] = Field(default_factory=dict, description="dotted paths in the config that it returns")
    train: Identity[TrainSettings | None] = Field(None, description="needed with recipe; leave it out with use")
    use: Added[str | None] = Field(None, description="artifact: the name of an import or a run, NAME-FINGERPRINT, or a unique prefix of it")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.recipe is None) == (self.use is None):
            raise ValueError("give either density.recipe (train one) or density.use (an artifact)")
        if self.recipe is not None and self.train is None:
            raise ValueError("density.train is missing: give at least {steps: N}")
        changed = {"args": self.args, "set": self.set, "train": self.train}
        if self.use is not None and (given := [name for name, value in changed.items() if value]):
            raise ValueError(f"density.{given[0]} goes with density.recipe: a density in use is trained already")
        return self


class StageConfig(Section):
    """Further training of the generator: the same model, from the weights of the step before, under another objective or on
    other settings; fine-tuning, post-training and distillation are stages."""

    name: Identity[str] = Field(pattern=NAME, description="its step is stage_NAME")
    objective: Identity[dict[str, Any] | None] = Field(
        None, description="what it minimises, {NAME: {FIELD: VALUE}}, e.g. {nll: {}}; the generator's own if not given"
    )
    roles: Identity[dict[str, str]] = Field(
        default_factory=dict, description="artifacts that the objective needs, by role, e.g. {teacher: NAME-FINGERPRINT}"
    )
    train: Identity[TrainSettings]


class BaseConfig(Trained):
    """The tokenizer that another one depends on, trained before it or used: exactly one of ``recipe`` and ``use``."""

    where: ClassVar[str] = "tokenizer.base"

    recipe: Identity[str | None] = Field(None, description="a name from `tokenloom methods`")
    args: Identity[dict[str, Any]] = Field(default_factory=dict, description="arguments of the recipe function")
    set: Identity[dict[str, Any]] = Field(default_factory=dict, description="dotted paths in the config that it returns")
    train: Identity[TrainSettings | None] = Field(None, description="left out only where a recipe has nothing to train")
    use: Identity[str | None] = Field(None, description="artifact: NAME-FINGERPRINT, a unique prefix of it, or a run's name")

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.recipe is None) == (self.use is None):
            raise ValueError(f"give either {self.where}.recipe (train one) or {self.where}.use (an artifact)")
        return self


class TokenizerConfig(BaseConfig):
    """A tokenizer to train, or one to use: exactly one of ``recipe`` and ``use``.

    ``base`` is the tokenizer that a recipe depends on, if it does.  ``pinned: true`` keeps the tokenizer that this run name
    trained first, whatever the data does later.  ``warm_start`` fine-tunes: training starts from the weights of another tokenizer,
    an import too, all but the ``fresh`` parts, e.g. another codebook; another size of images needs nothing more.
    """

    where: ClassVar[str] = "tokenizer"

    base: Identity[BaseConfig | None] = Field(None, description="the tokenizer that this one depends on: a recipe or {use: ARTIFACT}")
    pinned: Execution[bool] = False
    warm_start: Added[str | None] = Field(
        None, description="weights to start from: a tokenizer artifact (NAME-FINGERPRINT, a prefix of it, a run's name or an import)"
    )
    fresh: Added[tuple[str, ...]] = Field((), description="parts that start afresh beside warm_start, e.g. [quantizer, adversarial]")

    @model_validator(mode="after")
    def _base_of_a_recipe(self) -> Self:
        if self.use is not None and self.base is not None:
            raise ValueError("tokenizer.base goes with tokenizer.recipe: a tokenizer in use is trained already")
        if self.warm_start is not None and self.recipe is None:
            raise ValueError("tokenizer.warm_start goes with tokenizer.recipe: a tokenizer in use is trained no further")
        if self.warm_start is not None and self.train is None:
            raise ValueError("tokenizer.warm_start goes with tokenizer.train: without it nothing is trained")
        if self.fresh and self.warm_start is None:
            raise ValueError(f"tokenizer.fresh={list(self.fresh)} goes with tokenizer.warm_start: without it all parts start afresh")
        return self
