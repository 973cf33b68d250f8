"""A generator of all orders whose own way of decoding may be rejection sampling."""

from __future__ import annotations

from dataclasses import dataclass

from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.groups import GroupWise
from tokenloom.models.sampling.decoders.rejection import Rejection
from tokenloom.models.sampling.sampler import Sampler


class AnyOrder(GroupGenerator):
    """A generator over double positions."""

    @dataclass(frozen=True, kw_only=True)
    class Config(GroupGenerator.Config, tag="model.any_order"):
        """``burst``: its own way of decoding; None is group after group."""

        burst: Rejection | None = None

    config: Config

    def decoder_of(self, sampler: Sampler) -> Decoder:
        return sampler.decoder or self.config.burst or GroupWise()
