"""What a way of decoding is: a value, chosen when sampling, that runs on any generator whose parts allow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError, from_fields


class Decoder(config.Config, ABC):
    """A loop over the verbs of a session."""

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Decoder:
        """A decoder as a run file has it, ``{jacobi: {window: 8}}``.

        Raises:
            ConfigError: another name, an unknown field, or a value of the wrong type.
        """
        named = {kind.tag.partition(".")[2]: tag for tag, kind in config.tags().items() if issubclass(kind, Decoder)}
        if len(value) != 1 or next(iter(value)) not in named:
            raise ConfigError(f"{where}: {dict(value)!r}: write one of {', '.join(sorted(named))}, with its fields where they differ")
        (name, fields), *_ = value.items()
        return cast(Decoder, from_fields(config.tags()[named[name]], fields, f"{where}.{name}"))

    @property
    def name(self) -> str:
        """What a run file calls it."""
        return self.tag.partition(".")[2]

    @abstractmethod
    def refusal(self, model: Any, sampler: Any) -> str | None:
        """Why this decoder cannot sample from a generator with this sampler; None where it can."""

    @abstractmethod
    def run(self, model: Any, conditions: Any, sampler: Any, draws: Any, **given: Any) -> tuple[Any, Any]:
        """One sample a row, and the trace of how it was made; ``given``: tokens in the prompt (see ``DecodingSession``)."""

    def check(self, model: Any, sampler: Any) -> None:
        """Refuse, before anything is drawn.

        Raises:
            ConfigError: the reason.
        """
        if (reason := self.refusal(model, sampler)) is not None:
            raise ConfigError(f"sample.decoder={self.name}: {reason}")
