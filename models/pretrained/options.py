"""The options of official classes: which a family takes, which have no effect on what it computes, and which it refuses by name.

A family declares every key of its official config::

    OPTIONS = Options(
        dim=used("width"),
        cfg_schedule=used("guidance", "linear", "constant"),   # only these values are known
        seed=inert("the weights are given"),
        proj=only(1, why="the official code fails for others"),
    )

and reads a config by ``OPTIONS.read(info)``, so that no key is ever passed over.  ``docs/parity.md`` is made from these declarations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenloom.models.core.config import ConfigError

_REQUIRED = object()


@dataclass(frozen=True)
class Option:
    """One key: what is done with it, the values that are supported (none named: any that fits), and words on it."""

    effect: Literal["used", "none", "only"]
    words: str = ""
    values: tuple[Any, ...] = ()
    default: Any = _REQUIRED

    @property
    def optional(self) -> bool:
        """Whether a config may leave the key out."""
        return self.default is not _REQUIRED or self.effect != "used"

    def check(self, key: str, value: Any) -> None:
        """Refuse a value that is not supported.

        Raises:
            ConfigError: with key, value and reason.
        """
        if self.values and not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values):
            known = ", ".join(repr(v) for v in self.values)
            raise ConfigError(f"config.{key}={value!r}: only {known}{f' ({self.words})' if self.effect == 'only' else ''}")


def used(words: str = "", *values: Any, default: Any = _REQUIRED) -> Option:
    """A key that is honoured; ``values``, if any are named, are all that the official code knows.  ``default`` where it is left out."""
    return Option("used", words, values, default)


def inert(why: str) -> Option:
    """A key that changes no number that is compared, and why."""
    return Option("none", why)


def only(*values: Any, why: str) -> Option:
    """A key that is supported with these values alone (the first if it is left out), and why others are refused."""
    return Option("only", why, values)


class Options(Mapping[str, Option]):
    """All keys of a family's official config."""

    def __init__(self, *bases: Mapping[str, Option], **keys: Option) -> None:
        self._keys: dict[str, Option] = {}
        for keys_of in (*bases, keys):
            self._keys |= keys_of

    def __getitem__(self, key: str) -> Option:
        return self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, info: Mapping[str, Any], also: Mapping[str, Option] | None = None) -> dict[str, Any]:
        """The config in ``info`` with defaults for keys that it leaves out; every key is known and every value supported.

        Raises:
            ConfigError: an unknown or missing key, or a value that is not supported, with the reason.
        """
        config, keys = info["config"], self._keys | dict(also or {})
        if unknown := sorted(config.keys() - keys.keys()):
            raise ConfigError(
                f"config.{unknown[0]}={config[unknown[0]]!r}: the family does not know this option of the official class; "
                f"it knows {', '.join(sorted(keys))}"
            )
        for key, option in keys.items():
            if key in config:
                option.check(key, config[key])
            elif not option.optional:
                raise ConfigError(f"config.{key} is missing; it is a setting of the official class")
        defaults = {k: o.default for k, o in keys.items() if o.effect == "used" and o.optional and k not in config}
        return {**defaults, **config}

    def without(self, *keys: str) -> Options:
        """The same without some keys."""
        return Options({k: v for k, v in self._keys.items() if k not in keys})


def square(key: str, length: int) -> int:
    """The side of a square grid of so many positions.

    Raises:
        ConfigError: no square.
    """
    side = round(length**0.5)
    if side * side != length:
        raise ConfigError(f"config.{key}={length}: no square; the official class has square grids alone")
    return side


def at_most(key: str, steps: int, positions: int) -> int:
    """So many steps, each of which decides at least one position.

    Raises:
        ConfigError: fewer than one, or more than positions.
    """
    if not 1 <= steps <= positions:
        raise ConfigError(f"config.{key}={steps}: from 1 to the {positions} positions, since a step decides at least one")
    return steps


def optional(option: Option, default: Any) -> Option:
    """The same option with a default."""
    return replace(option, default=default)


def filters(top_k: int = 0, top_p: float = 1.0) -> dict[str, Option]:
    """Keys of the filters of logits, with what the family was released with; 0 and 1 keep all codes."""
    return {
        "top_k": used("likeliest codes to draw from; recorded runs are greedy", default=top_k),
        "top_p": used("their probability; recorded runs are greedy", default=top_p),
    }


#: Keys of recorded numbers: what they say stands in the inputs that were recorded with them.
RECORDED = {
    key: inert("recorded inputs say it")
    for key in ("seed", "kind", "labels_tf", "labels_gen", "labels", "gen_labels", "drop", "drop_tf", "lens", "gen_lens", "pad", "null_row")
}
#: What training alone does: no draws, no effect.
TRAINING = {
    key: inert("of training alone")
    for key in (
        "attn_drop_rate",
        "drop_rate",
        "drop_path_rate",
        "cond_drop_rate",
        "class_dropout_prob",
        "token_dropout_p",
        "attn_dropout_p",
        "resid_dropout_p",
        "ffn_dropout_p",
        "dropout",
        "attn_drop",
        "initializer_range",
    )
}
