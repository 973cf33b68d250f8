"""Sampler settings that belong to a head: steps of its own diffusion, noise, a solver.  Each head that has some defines a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenloom.models.core import config
from tokenloom.models.core.named import parse_named


@dataclass(frozen=True, kw_only=True)
class HeadSampler(config.Config):
    """Base of the values; tags are ``head_sampler.NAME``, by which a run file writes ``sample: {head: {NAME: {field: value}}}``."""

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> config.Config:
        return parse_named("head_sampler", value, where)
