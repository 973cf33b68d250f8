"""What a run would do and why: its steps in order, each cached, to be run, or unknown until an earlier one is done.

Which steps there are and what each is made from is one table, ``tasks/steps/table.py``; ``flows/steps.py`` executes them one by
one, and ``plan`` looks at all of them without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenloom.configs.schema import RunConfig, identity
from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.runtime.errors import ArtifactError
from tokenloom.tasks.steps.base import Context, Given, Later, Planned
from tokenloom.tasks.steps.table import TABLE, Link, chain
from tokenloom.tasks.store.artifacts import Artifact, Store, canonical_json, sha256_of
from tokenloom.tasks.store.lineage import explain

__all__ = ["STEPS", "Planned", "chain", "check", "fingerprint", "inputs", "plan"]

#: Names of all steps that there are, in order.
STEPS = tuple(step.name for step in TABLE)


def plan(config: RunConfig, store: Store, registry: str | None = None) -> tuple[Planned, ...]:
    """Every step of a run: cached (complete and verified), to be run and why, or unknown until an earlier step is done.

    With ``registry``, the address of the model registry, a registration counts only while the registry has it.
    """
    return tuple(_by_role(Context(config, store, registry)).values())


def _by_role(context: Context) -> dict[str, Planned]:
    """What is planned of each step, by the role of what it makes, in order."""
    planned: dict[str, Planned] = {}
    made: dict[str, Artifact] = {}  # role: artifact, complete or to be made
    for link in chain(context.config, context.store):
        waiting = [planned[role].name for role in link.needs.values() if planned[role].status != "cached"]
        one = planned[link.step.makes] = _link(link, context, made, waiting)
        if one.artifact is not None:
            made[link.step.makes] = one.artifact
        elif one.spec is not None:
            made[link.step.makes] = context.store.artifact(one.spec)
    return planned


def _link(link: Link, context: Context, made: Mapping[str, Artifact], waiting: list[str]) -> Planned:
    """What is planned of one step; ``made`` are artifacts by role, ``waiting`` the steps before it that have to run first."""
    step, store = link.step, context.store
    if any(role not in made for role in link.needs.values()):
        return Planned(step.name, "unknown", f"decided when {waiting[0]} is done")
    try:
        answer = step.plan(context, {name: made[role] for name, role in link.needs.items()})
    except ArtifactError:
        if not waiting:
            raise
        return Planned(step.name, "unknown", f"decided when {waiting[0]} is done")
    if isinstance(answer, Later):
        return Planned(step.name, "run", answer.reason)
    if isinstance(answer, Given):
        if problems := store.verify(answer.artifact):
            raise ArtifactError(f"{answer.artifact.id}: {'; '.join(problems[:3])}")
        return Planned(step.name, "cached", answer.reason, answer.artifact)
    artifact = store.find(answer)
    if artifact is None:
        return Planned(step.name, "run", explain(store, answer) or "no such artifact", None, answer)
    if reason := step.lost(context, artifact):
        return Planned(step.name, "run", reason, None, answer)
    return Planned(step.name, "cached", "complete", artifact, answer)


def inputs(name: str, config: RunConfig, store: Store) -> dict[str, Artifact]:
    """The artifacts that one step needs, by input name, when it is run alone.

    Raises:
        ConfigError: an earlier step has to run first, or the run has no such step.
    """
    links = chain(config, store)
    link = next((each for each in links if each.step.name == name), None)
    if link is None:
        raise ConfigError(f"run {config.name} has no step {name}; it has: {', '.join(each.step.name for each in links)}")
    planned = _by_role(Context(config, store))
    for what, role in link.needs.items():
        if planned[role].artifact is None:
            raise ConfigError(f"step {name} needs {what}, which is not in the store: run step {planned[role].name} first")
    return {what: artifact for what, role in link.needs.items() if (artifact := planned[role].artifact)}


def check(config: RunConfig, store: Store, planned: tuple[Planned, ...]) -> None:
    """Refuse, before any work, what cannot work: models that do not build, or do not fit the data.

    Raises:
        ConfigError: naming the field and what to do.
    """
    by_role = roles(config, store, planned)
    for link in chain(config, store):
        link.step.check(Context(config, store), by_role)


def roles(config: RunConfig, store: Store, planned: tuple[Planned, ...]) -> dict[str, Planned]:
    """What is planned of each step, by the role of what it makes."""
    return {link.step.makes: one for link, one in zip(chain(config, store), planned)}


def published_trainings(config: RunConfig) -> list[dict[str, Any]]:
    """What ``train: {as: paper}`` came to, for each section that says it: its settings, and what of the published training they lack."""
    tokenizer, found = config.tokenizer, []
    sections = {"tokenizer": tokenizer, "tokenizer.base": tokenizer and tokenizer.base, "generator": config.generator}
    for where, section in (sections | {"density": config.density}).items():
        if section is None or section.train is None or section.train.source != "paper":
            continue
        assert section.recipe is not None, "a section that trains has a recipe"
        published, train = registry.get(section.recipe).training(section.args), section.train
        found.append(
            {
                "section": where,
                "length": f"{train.epochs:g} epochs" if train.epochs is not None else f"{train.steps} steps",
                "published steps": train.on(published.images).steps,
                "train": identity(train),
                "augmentation": list(published.augmentation),
                "departs": list(published.departs),
            }
        )
    return found


def fingerprint(config: RunConfig) -> str:
    """12 hex digits that name a run's recipe (its identity fields), for flow run names."""
    return sha256_of(canonical_json(identity(config)))[:12]
