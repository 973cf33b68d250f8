"""What can be known to be impossible before any work starts: the models of a run are built without memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tokenloom.configs.schema import BaseConfig, RunConfig, TokenizerConfig, identity
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec, parameters
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Density, Generator, Labels, LayoutError, Method
from tokenloom.models.core.settings import ExecutionSettings
from tokenloom.models.parts.conditions import Single
from tokenloom.models.parts.nets.classifier import shape_of
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks import modalities
from tokenloom.tasks.serving import drafts
from tokenloom.tasks.serving.predict import default_sampler, use_draft_model
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.records import StepSpec
from tokenloom.tasks.training.carried import carried


def depends_on(section: BaseConfig) -> tuple[str, ...]:
    """The roles of the artifacts, besides the dataset, that training this tokenizer needs: ``base``, ``features``.

    Raises:
        ConfigError: unknown recipe or argument; a base that is missing, not needed, or that depends on others itself.
    """
    if section.recipe is None:
        return ()
    where, base = section.where, section.base if isinstance(section, TokenizerConfig) else None
    try:
        needs: tuple[str, ...] = ModelSpec("tokenizer", section.recipe, dict(section.args), dict(section.set)).config().needs
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(section, TokenizerConfig):
        if needs:
            raise ConfigError(f"{where}: recipe {section.recipe!r} depends on other models itself ({', '.join(needs)}); take a plain one")
    elif "tokenizer" in needs and base is None:
        raise ConfigError(
            f"{where}: recipe {section.recipe!r} depends on another tokenizer, and {where}.base is missing: "
            "give {recipe: …} or {use: ARTIFACT}"
        )
    elif base is not None and "tokenizer" not in needs:
        raise ConfigError(f"{where}.base: recipe {section.recipe!r} depends on no other tokenizer; leave base out")
    return tuple({"tokenizer": "base"}.get(need, need) for need in needs)


def check_models(config: RunConfig, classes: int) -> None:
    """Build the tokenizer (with its base) and the generator of a run that uses nothing of a store, on the meta device.

    Raises:
        ConfigError: unknown recipe or argument, or a value that does not fit; the message starts with the section.
    """
    if config.density is not None:
        return None if config.density.use is not None else check_density(config, classes)
    spec, layout = check_tokenizer(config, classes)
    if config.generator is not None:
        check_generator(config, classes, spec, layout)


def check_tokenizer(
    config: RunConfig, classes: int, tokenizer: dict[str, Any] | None = None, base: dict[str, Any] | None = None
) -> tuple[ModelSpec, dict[str, Any]]:
    """Build the tokenizer of a run (with its base) on the meta device; its spec, and its layout as plain data.

    Args:
        config: the run.
        classes: number of classes in the data.
        tokenizer: spec of the tokenizer in use (``ModelSpec.to_dict()``); None when the run trains its own.
        base: spec of the base in use (``tokenizer.base.use``), if there is one.

    Raises:
        ConfigError: as ``check_models``.
    """
    data, section = {"signal": modalities.kind(config.data.kind).spec(config.data).to_dict()}, config.tokenizer
    if tokenizer is not None:
        spec = _used(tokenizer, _used_by(config), data)
        built = _build(spec, "tokenizer")
    else:
        assert section is not None, "a run without a tokenizer uses one"
        given: dict[str, Any] = dict(data)
        roles = depends_on(section)
        if section.base is not None:
            given["tokenizer"] = _base(section.base, base, data)
        if "features" in roles:
            given["features"] = shape_of(config.data.channels, classes)
        spec = ModelSpec("tokenizer", section.recipe or "", dict(section.args), dict(section.set), given)
        built = _build(spec, "tokenizer")
        check_training(built, spec.recipe, section.train, "tokenizer")
    return spec, getattr(built, "layout").to_dict()  # noqa: B009 - Method has no layout, a tokenizer does


def _used_by(config: RunConfig) -> str:
    """The field that brings the tokenizer in use."""
    method, section = config.generator, config.tokenizer
    if method is not None and method.use is not None:
        return f"generator.use={method.use!r}"
    return f"tokenizer.use={section.use if section else None!r}"


def _base(section: BaseConfig, used: dict[str, Any] | None, data: dict[str, Any]) -> dict[str, Any]:
    """The spec of the tokenizer that another one depends on: of the artifact in use, or built here."""
    depends_on(section)
    if used is not None:
        return _used(used, f"tokenizer.base.use={section.use!r}", data).to_dict()
    spec = ModelSpec("tokenizer", section.recipe or "", dict(section.args), dict(section.set), data)
    check_training(_build(spec, section.where), spec.recipe, section.train, section.where)
    return spec.to_dict()


def check_generator(
    config: RunConfig,
    classes: int,
    tokenizer: ModelSpec,
    layout: dict[str, Any],
    start: tuple[str, dict[str, Any]] | None = None,
    draft: dict[str, Any] | None = None,
) -> None:
    """Build the generator of a run on the meta device, and look at its sampler.

    Args:
        config: the run, with a generator.
        classes: number of classes in the data.
        tokenizer: spec of the tokenizer whose tokens it is for.
        layout: of those tokens, as plain data.
        start: name and spec of the generator that training starts from, if there is one.
        draft: spec of the generator that drafts for it when it is sampled, if there is one.

    Raises:
        ConfigError: as ``check_models``.
    """
    method = config.generator
    assert method is not None, "a run without a generator has nothing to check"
    given = {"layout": layout, "classes": classes, "tokenizer": tokenizer.to_dict()}
    made = ModelSpec("generator", method.recipe or "", dict(method.args), dict(method.set), given)
    _check_sampling(config, made, draft)
    if start is not None:
        check_warm_start(made, ModelSpec.from_dict(start[1]), start[0])


def check_used_generator(config: RunConfig, classes: int, made: ModelSpec, draft: dict[str, Any] | None = None) -> None:
    """See that the generator that a run uses fits its data and can follow its sampler; ``made`` is its spec.

    Raises:
        ConfigError: it is conditioned on other classes than the data's, or as ``check_models``.
    """
    assert config.generator is not None, "a run without a generator has nothing to check"
    theirs = made.given.get("classes")
    if Labels.name in ConditionSpec.of(made).names and theirs != classes:
        raise ConfigError(
            f"generator.use={config.generator.use!r}: conditioned on {theirs} classes, the data has {classes}: "
            "give the data that it was trained on"
        )
    _check_sampling(config, made, draft)


def _check_sampling(config: RunConfig, made: ModelSpec, draft: dict[str, Any] | None) -> None:
    """Build the generator without memory and look at its sampler, and at the model that drafts for it."""
    generator = cast(Generator, _build(made, "generator"))
    sampler = default_sampler(generator).edited(**identity(config.sample))
    if draft is not None:
        where = drafts.field(identity(config.sample))
        use_draft_model(generator, cast(Generator, _build(ModelSpec.from_dict(draft), where)), where)
    try:
        generator.check_sampler(sampler)
        if not made.recipe.startswith("official/"):  # how those were trained, their config does not say
            check_guidance(generator, sampler)
    except LayoutError as error:
        raise ConfigError(f"generator: recipe {made.recipe!r} does not fit the tokenizer's tokens: {error}") from error


def check_guidance(generator: Generator, sampler: Sampler) -> None:
    """Guidance mixes the model with itself under a null condition, which only a training that drops conditions has seen.

    Raises:
        ConfigError: guidance of a generator that drops none.
    """
    condition = getattr(generator, "condition", None)
    rates = [each.rate for each in condition.modules() if isinstance(each, Single)] if condition is not None else []
    if sampler.guidance.value != 0 and rates and not any(rates):
        raise ConfigError(
            f"sample.guidance={sampler.guidance.value}: this generator is trained without a null condition (label_dropout or "
            "condition.dropout is 0), so guidance would mix in weights that were never trained: give generator.args label_dropout: 0.1 "
            "(set: {condition.dropout: 0.1}), or guidance 0"
        )


def check_augmentation(config: RunConfig) -> None:
    """Refuse a training that varies what cannot be varied: tokens, or items of a kind that has no augmentations.

    Raises:
        ConfigError: naming the section.
    """
    base = config.tokenizer and config.tokenizer.base
    of_tokens = {"generator": config.generator} | {f"stages.{stage.name}": stage for stage in config.stages}
    of_items = {"tokenizer": config.tokenizer, "tokenizer.base": base, "density": config.density}
    for where, section in (of_tokens | of_items).items():
        if section is None or section.train is None or section.train.augment is None:
            continue
        if where in of_tokens:
            raise ConfigError(f"{where}.train.augment: it reads tokens, which are made before it trains; extract.views has their forms")
        if not modalities.kind(config.data.kind).draws:
            raise ConfigError(f"{where}.train.augment: items of kind {config.data.kind} are not varied; leave it out")


def check_density(config: RunConfig, classes: int) -> None:
    """Build the density of a run on the meta device.

    Raises:
        ConfigError: as ``check_models``.
    """
    method = config.density
    assert method is not None, "a run without a density has nothing to check"
    given = {"signal": modalities.kind(config.data.kind).spec(config.data).to_dict(), "classes": classes}
    _build(ModelSpec("density", method.recipe or "", dict(method.args), dict(method.set), given), "density")


def check_used_density(config: RunConfig, classes: int, made: ModelSpec) -> None:
    """A density in use models data of one shape, and where it has classes as many as the data.

    Raises:
        ConfigError: the data is of another kind, or has other classes.
    """
    assert config.density is not None, "a run without a density has nothing to check"
    where, ours = f"density.use={config.density.use!r}", modalities.kind(config.data.kind).spec(config.data).to_dict()
    if (theirs := made.given["signal"]) != ours:
        raise ConfigError(f"{where}: models signals {theirs}, the data has {ours}: give the data that it was trained on")
    conditional = cast(Density, _build(made, "density")).conditional
    if conditional and made.given.get("classes") != classes:
        raise ConfigError(
            f"{where}: conditioned on {made.given.get('classes')} classes, the data has {classes}: give the data that it was trained on"
        )


def check_stage(spec: StepSpec, where: str, classes: int, tokenizer: ModelSpec, layout: dict[str, Any]) -> None:
    """Build the generator of a stage, with the objective of that stage, on the meta device.

    Raises:
        ConfigError: an objective that the generator cannot be trained with.
    """
    given = {"layout": layout, "classes": classes, "tokenizer": tokenizer.to_dict()}
    noted = spec.notes
    _build(ModelSpec("generator", noted["recipe"], noted["args"], noted["set"], given, spec.config["config"]), where)


def check_warm_start(spec: ModelSpec, start: ModelSpec, name: str, fresh: Sequence[str] = ()) -> None:
    """A model can start from another one's weights only if they have the same names and shapes, but for ``fresh`` parts of a tokenizer.

    Raises:
        ConfigError: they do not; names the first tensors that differ.
    """
    ours, theirs = (_build(each, spec.kind).state_dict() for each in (spec, start))
    where = f"{spec.kind}.warm_start: {name} ({start.recipe}) does not fit recipe {spec.recipe!r}"
    try:
        carried(ours, theirs, fresh, where)
    except ConfigError as error:
        name_it = ", name the parts that start afresh (tokenizer.fresh: [quantizer])" if spec.kind == "tokenizer" else ""
        raise ConfigError(f"{error}. Keep the recipe and its arguments{name_it}, or leave warm_start out") from error


def check_training(model: Method, recipe: str, train: Any, where: str) -> None:
    """A model is trained if, and only if, it has something to train.

    Raises:
        ConfigError: it has, and ``train`` is missing, or it has not.
    """
    if train is None and parameters(model):
        raise ConfigError(f"{where}.train is missing: give at least {{steps: N}}")
    if train is not None and not parameters(model):
        raise ConfigError(f"{where}.train: recipe {recipe!r} has nothing to train; leave {where}.train out")


def _used(spec: dict[str, Any], where: str, data: dict[str, Any]) -> ModelSpec:
    """The spec of a model in use, which has to be made for a signal like this."""
    found = ModelSpec.from_dict(spec)
    refuse_other_signal(found.given["signal"], data["signal"], where)
    return found


def refuse_other_signal(made_for: dict[str, Any], data: dict[str, Any], where: str) -> None:
    """Raise ``ConfigError`` where a model was made for another signal than the data's."""
    for name in ("kind", "shape", "channels", "range"):
        if made_for[name] != data[name]:
            ours, theirs = (signals.text(v) if name == "shape" else v for v in (data[name], made_for[name]))
            raise ConfigError(f"{where}: made for {name} {theirs}, the data has {ours}; change data or train a tokenizer")


def check_sharding(spec: ModelSpec, execution: ExecutionSettings) -> None:
    """See that a generator can be trained with ``sharding: fsdp``; raises ``ConfigError``."""
    from tokenloom.tasks.training.sharding import check_sharded

    check_sharded(_build(spec, spec.kind), execution.compile)


def _build(spec: ModelSpec, section: str) -> Method:
    try:
        return spec.shaped()
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(section) else f"{section}: {text}") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError) as error:
        raise ConfigError(f"{section}.args {spec.args}: no {spec.recipe} has these sizes ({type(error).__name__}: {error})") from error
