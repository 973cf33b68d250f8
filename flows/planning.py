"""What a run would do and why: its steps in order, each cached, to be run, or unknown until an earlier one is done.

The functions ``*_step`` say what each step is made from; ``flows/steps.py`` executes them one by one, and
``plan`` looks at all of them without running anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store, canonical_json, sha256_of
from tokenloom.tasks.store.lineage import explain


@dataclass(frozen=True)
class Planned:
    """One step of a plan. ``artifact`` is there when it is complete, ``step`` when all that shapes it is known."""

    name: str
    status: Literal["cached", "run", "unknown"]
    reason: str
    artifact: Artifact | None = None
    step: StepSpec | None = None

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of what the step makes, where it is known."""
        return self.artifact.fingerprint if self.artifact else self.step.fingerprint if self.step else None

    def row(self) -> dict[str, Any]:
        """Plain form, for ``tokenloom plan --json``."""
        uri = self.artifact.uri if self.artifact else None
        return {"name": self.name, "status": self.status, "fingerprint": self.fingerprint, "reason": self.reason, "uri": uri}


def tokenizer_step(
    config: RunConfig, store: Store, dataset: Artifact, base: Artifact | None = None, features: Artifact | None = None
) -> StepSpec | Artifact:
    """The training of the run's tokenizer on what it stands on, or the tokenizer that it uses (``use``, ``pinned``).

    Raises:
        ConfigError: the tokenizer in ``use`` is not in the store.
    """
    from tokenloom.tasks.distributed import plan_tokenizer

    if found := given_tokenizer(config, store):
        return found
    return plan_tokenizer(config.name, config.tokenizer, dataset, store, base, features)


def base_step(config: RunConfig, store: Store, dataset: Artifact) -> StepSpec | Artifact:
    """The training of the tokenizer that the run's tokenizer stands on, or the one that it uses.

    Raises:
        ConfigError: the tokenizer in ``use`` is not in the store.
    """
    from tokenloom.tasks.distributed import plan_tokenizer

    assert config.tokenizer.base is not None, "a run without a base has no such step"
    return given_base(config, store) or plan_tokenizer(f"{config.name}-base", config.tokenizer.base, dataset, store)


def given_base(config: RunConfig, store: Store) -> Artifact | None:
    """The tokenizer artifact that the run's tokenizer stands on, if one is used (``tokenizer.base.use``)."""
    if config.tokenizer.base is None or config.tokenizer.base.use is None:
        return None
    try:
        return store.resolve(config.tokenizer.base.use, "tokenizer")
    except ConfigError as error:
        raise ConfigError(f"tokenizer.base.use: {error}") from error


def given_tokenizer(config: RunConfig, store: Store) -> Artifact | None:
    """The tokenizer artifact that a run uses instead of training one, if it does."""
    if config.tokenizer.use is not None:
        try:
            return store.resolve(config.tokenizer.use, "tokenizer")
        except ConfigError as error:
            raise ConfigError(f"tokenizer.use: {error}") from error
    if config.tokenizer.pinned:
        mine = [r.artifact for r in store.records("tokenizer") if r.artifact.name == config.name]
        return mine[0] if mine else None
    return None


def extract_step(config: RunConfig, store: Store, dataset: Artifact, tokenizer: Artifact) -> StepSpec:
    """Every image of the dataset as tokens."""
    from tokenloom.tasks.extract import plan_extract

    return plan_extract(config.name, dataset, tokenizer, store, tuple(config.extract.views))


def features_step(config: RunConfig, store: Store, dataset: Artifact) -> StepSpec:
    """The network that judges samples; it depends on the dataset and the protocol alone."""
    from tokenloom.tasks.features import plan_features

    return plan_features(dataset, config.evaluate, store)


def generator_step(config: RunConfig, store: Store, tokens: Artifact, tokenizer: Artifact, tracking: str | None = None) -> StepSpec:
    """The training of the generator, from fresh weights or a warm start; ``tracking`` is where the champion is looked up.

    Raises:
        ConfigError: a warm start that is not in the store, or that knows the codes of another tokenizer.
    """
    from tokenloom.tasks.distributed import plan_generator

    assert config.generator is not None, "a run without a generator has no such step"
    wanted = config.generator.warm_start
    fresh = plan_generator(config.name, config.generator, tokens, tokenizer, store)
    if wanted is None:
        return fresh
    from tokenloom.tasks.training.warm_start import warm_start

    start = warm_start(wanted, config.register_.name or config.name, fresh, store, tracking)
    return plan_generator(config.name, config.generator, tokens, tokenizer, store, start)


def evaluate_step(
    config: RunConfig, store: Store, tokenizer: Artifact, dataset: Artifact, features: Artifact, generator: Artifact | None = None
) -> StepSpec:
    """Samples, numbers and pictures under the run's protocol; without a generator those of the tokenizer alone."""
    from tokenloom.tasks.evaluate import plan_evaluate

    return plan_evaluate(config.name, generator, tokenizer, dataset, features, config.sample, config.evaluate, store)


def register_step(config: RunConfig, store: Store, evaluation: Artifact, generator: Artifact, tokenizer: Artifact) -> StepSpec:
    """A version in the model registry, and the gate of its alias."""
    from tokenloom.tasks.register import plan_register

    return plan_register(config.name, config.register_, evaluation, generator, tokenizer, store)


@dataclass(frozen=True)
class Link:
    """One link of the chain: the step's name, the role of what it makes, what it needs, and how it is built."""

    name: str
    role: str
    needs: tuple[str, ...]
    build: Callable[..., StepSpec | Artifact] | None


#: All steps that there are, in order. ``needs`` are roles made by earlier steps and keyword arguments of ``build``.
CHAIN = (
    Link("ingest", "dataset", (), None),
    Link("train_base", "base", ("dataset",), base_step),
    Link("train_tokenizer", "tokenizer", ("dataset", "base", "features"), tokenizer_step),
    Link("extract", "tokens", ("dataset", "tokenizer"), extract_step),
    Link("features", "features", ("dataset",), features_step),
    Link("train_generator", "generator", ("tokens", "tokenizer"), generator_step),
    Link("evaluate", "evaluation", ("generator", "tokenizer", "dataset", "features"), evaluate_step),
    Link("register", "registration", ("evaluation", "generator", "tokenizer"), register_step),
)
STEPS = tuple(link.name for link in CHAIN)


def links(config: RunConfig, store: Store) -> tuple[Link, ...]:
    """The chain of one run: without a generator it ends with the evaluation; what its tokenizer stands on comes before it.

    Raises:
        ConfigError: a tokenizer whose base is missing or not needed.
    """
    from tokenloom.tasks.runtime.checks import stands_on

    below = () if given_tokenizer(config, store) else stands_on(config.tokenizer)
    absent = {"generator", "registration"} if config.generator is None else set()
    absent |= set() if "base" in below else {"base"}
    chain = []
    for link in CHAIN:
        wanted = ("dataset", *below) if link.role == "tokenizer" else link.needs
        if link.role not in absent:
            chain.append(replace(link, needs=tuple(role for role in wanted if role not in absent)))
    if "features" in below:
        chain.sort(key=lambda link: 0 if link.name in ("ingest", "features") else 1)
    return tuple(chain)


def plan(config: RunConfig, store: Store, tracking: str | None = None) -> tuple[Planned, ...]:
    """Every step of a run: cached (complete and verified), to be run and why, or unknown until an earlier step is done.

    With ``tracking``, the address of the model registry, a registration counts only while the registry has it.
    """
    planned: list[Planned] = []
    made: dict[str, Artifact] = {}  # role: artifact, complete or to be made
    waiting: dict[str, str] = {}  # role: name of the step that has to make it first
    for link in links(config, store):
        one = _ingest(config, store) if link.build is None else _link(link, config, store, made, waiting, tracking)
        if link.name == "register" and tracking is not None and one.artifact is not None:
            one = _in_registry(one, store, tracking)
        planned.append(one)
        if one.artifact is not None:
            made[link.role] = one.artifact
        elif one.step is not None:
            made[link.role] = store.artifact(one.step)
        if one.status != "cached":
            waiting[link.role] = link.name
    return tuple(planned)


def _ingest(config: RunConfig, store: Store) -> Planned:
    from tokenloom.tasks.ingest import scan

    found = scan(config.data, store)
    if found.fingerprint is not None and found.record is not None:
        return Planned("ingest", "cached", found.reason or "complete, nothing new in the source", found.record.artifact)
    return Planned("ingest", "run", found.reason)


def _in_registry(one: Planned, store: Store, tracking: str) -> Planned:
    from tokenloom.tasks.register import lost

    assert one.artifact is not None
    if lost(store, one.artifact, tracking):
        return replace(one, status="run", reason="the model registry does not have this version: it is filled again", artifact=None)
    return one


def _link(link: Link, config: RunConfig, store: Store, made: dict[str, Artifact], waiting: dict[str, str], tracking: str | None) -> Planned:
    assert link.build is not None
    upstream = [waiting[role] for role in link.needs if role in waiting]
    if any(role not in made for role in link.needs):
        return Planned(link.name, "unknown", f"decided when {upstream[0]} is done")
    where = {"tracking": tracking} if link.name == "train_generator" else {}
    try:
        built = link.build(config, store, **{role: made[role] for role in link.needs}, **where)
    except ArtifactError:
        if not upstream:
            raise
        return Planned(link.name, "unknown", f"decided when {upstream[0]} is done")
    if isinstance(built, Artifact):
        if problems := store.verify(built):
            raise ArtifactError(f"{built.id}: {'; '.join(problems[:3])}")
        how = "tokenizer.base.use" if link.role == "base" else "tokenizer.use" if config.tokenizer.use else "tokenizer.pinned"
        return Planned(link.name, "cached", how, built)
    if artifact := store.find(built):
        return Planned(link.name, "cached", "complete", artifact, built)
    return Planned(link.name, "run", explain(store, built) or "no such artifact", None, built)


def inputs(name: str, config: RunConfig, store: Store) -> dict[str, Artifact]:
    """The artifacts that one step needs, by role, when it is run alone.

    Raises:
        ConfigError: an earlier step has to run first, or the run has no such step.
    """
    chain = links(config, store)
    link = next((each for each in chain if each.name == name), None)
    if link is None:
        raise ConfigError(f"run {config.name} has no step {name}; it has: {', '.join(each.name for each in chain)}")
    planned = {each.role: one for each, one in zip(chain, plan(config, store))}
    for role in link.needs:
        if planned[role].artifact is None:
            raise ConfigError(f"step {name} needs {role}, which is not in the store: run step {planned[role].name} first")
    return {role: artifact for role in link.needs if (artifact := planned[role].artifact)}


def check(config: RunConfig, store: Store, planned: tuple[Planned, ...]) -> None:
    """Refuse, before any work, what cannot work: models that do not build, or do not fit the data.

    Raises:
        ConfigError: naming the field and what to do.
    """
    from tokenloom.tasks.data.asked import check_captions
    from tokenloom.tasks.data.sources import open_source
    from tokenloom.tasks.evaluation.gate import check_names
    from tokenloom.tasks.runtime.checks import check_models

    dataset = planned[0].artifact
    classes = len(store.record(dataset).notes["classes"]) if dataset else len(open_source(config.data).classes)
    start = next((one.step.inputs.get("warm_start") for one in planned if one.step and one.name == "train_generator"), None)
    used = (given_tokenizer(config, store), given_base(config, store), start)
    tokenizer, base, warm = (store.record(artifact).notes["spec"] if artifact else None for artifact in used)
    check_models(config, classes, tokenizer, base, (start.id, warm) if start and warm else None)
    features_step(config, store, dataset or Artifact("dataset", config.name, "0" * 12, ""))  # refuses a protocol that cannot be kept
    if config.generator is not None:
        check_captions(config)
        check_names(config.register_.floor, config.register_.gate, config.evaluate.metrics)


def fingerprint(config: RunConfig) -> str:
    """12 hex digits that name a run's recipe (its identity fields), for flow run names."""
    return sha256_of(canonical_json(identity(config)))[:12]
