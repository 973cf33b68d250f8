"""What a way of decoding is: a value, chosen when sampling, that runs on any generator whose parts allow it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from tokenloom.models.core import config
from tokenloom.models.core.config import ConfigError, from_fields


class Decoder(config.Config, ABC):
    """A loop over the verbs of a session.

    One module each in ``models/sampling/decoders``; those with a tag ``decoder.NAME`` are listed by ``tokenloom decoders``.
    """

    #: Where it is from: an arXiv id, or a title.
    paper: ClassVar[str] = ""
    #: Whether samples are distributed exactly as those of the generator decoded in its own way, whatever the fields' values.
    exact: ClassVar[bool] = True
    #: What must be there besides the generator, and what it must be made of, in words: a draft model, a stage, scales, …
    needs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Decoder:
        """A decoder as a run file has it, ``{jacobi: {window: 8}}``.

        Raises:
            ConfigError: another name, an unknown field, or a value of the wrong type.
        """
        known = decoders()
        if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in known:
            raise ConfigError(f"{where}: {value!r}: write one of {', '.join(known)}, with its fields where they differ")
        (name, fields), *_ = value.items()
        return cast(Decoder, from_fields(known[name], fields, f"{where}.{name}"))

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


def decoders() -> dict[str, type[Decoder]]:
    """Every decoder by the name that a run file gives it: its tag without ``decoder.``, in alphabetical order."""
    return {tag.partition(".")[2]: kind for tag, kind in sorted(config.tags().items()) if issubclass(kind, Decoder)}


def table() -> list[dict[str, Any]]:
    """One row a decoder, for ``tokenloom decoders``, ``python -m`` and the docs."""
    return [{"name": name, "paper": kind.paper, "exact": kind.exact, "needs": list(kind.needs)} for name, kind in decoders().items()]
