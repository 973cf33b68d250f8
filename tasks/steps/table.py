"""All steps in order, and the chain of one run.

    raw items -> dataset -> tokenizer -> tokens -> generator (-> stages) -> evaluation -> registration
                     |-> features (the network that judges the samples) --^
                     `-> density (a likelihood of the data itself) -------^

What a run has of them, and what each needs, is computed from the run: see ``needs`` of each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenloom.configs.schema import RunConfig
from tokenloom.tasks.steps import train_stage
from tokenloom.tasks.steps.base import Step
from tokenloom.tasks.steps.evaluate import EVALUATE
from tokenloom.tasks.steps.extract import EXTRACT
from tokenloom.tasks.steps.features import FEATURES
from tokenloom.tasks.steps.ingest import INGEST
from tokenloom.tasks.steps.register import REGISTER
from tokenloom.tasks.steps.train_density import TRAIN_DENSITY
from tokenloom.tasks.steps.train_generator import TRAIN_GENERATOR
from tokenloom.tasks.steps.train_tokenizer import TRAIN_BASE, TRAIN_TOKENIZER
from tokenloom.tasks.store.artifacts import Store

#: Every step that any run may have, in order; one that another needs comes before it wherever it stands here.
TABLE: tuple[Step, ...] = (INGEST, TRAIN_BASE, TRAIN_TOKENIZER, EXTRACT, FEATURES, TRAIN_GENERATOR, TRAIN_DENSITY, EVALUATE, REGISTER)


def steps(config: RunConfig) -> tuple[Step, ...]:
    """The table with the stages that a run adds."""
    after = TABLE.index(TRAIN_GENERATOR) + 1
    return (*TABLE[:after], *train_stage.steps(config), *TABLE[after:])


@dataclass(frozen=True)
class Link:
    """A step in the chain of one run: ``needs`` are its input names with the roles that fill them."""

    step: Step
    needs: Mapping[str, str]


def chain(config: RunConfig, store: Store) -> tuple[Link, ...]:
    """The steps of one run, each after those that it needs.

    Raises:
        ConfigError: a tokenizer whose base is missing or not needed.
    """
    links = {step.makes: Link(step, needs) for step in steps(config) if (needs := step.needs(config, store)) is not None}
    ordered: dict[str, Link] = {}

    def add(role: str) -> None:
        for needed in links[role].needs.values():
            if needed not in ordered:
                add(needed)
        ordered.setdefault(role, links[role])

    for role in links:
        add(role)
    return tuple(ordered.values())
