"""Official state dicts and ours: one small two-way map of names.

A map is a list of rules.  In a rule's patterns ``{i}``, ``{j}``, ``{k}`` and ``{n}`` stand for whole numbers and any
other name, e.g. ``{rest}``, for any text; both sides of a rule use the same placeholders::

    NameMap(
        Rename("layers.{i}.attention_norm.weight", "blocks.{i}.norm1.weight"),
        Fuse(("attn.q.{p}", "attn.k.{p}", "attn.v.{p}"), "attention.qkv.{p}"),   # several official tensors, one of ours
        Split("layers.{i}.w13.weight", ("blocks.{i}.gate.weight", "blocks.{i}.up.weight")),
        Ignore("quantize.ema_vocab_hit_SV"),                                       # a statistics buffer that we do not keep
    )

``load`` turns an official state dict into ours, ``dump`` turns ours back; both are strict: every name meets
exactly one rule and no tensor is missing.  ``dump`` works on any tensors of the parameters' shapes, gradients too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NUMBERS = frozenset("ijkn")


class StateError(ValueError):
    """A state dict does not fit the map: lists the names at fault."""


def _regex(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression with one named group a placeholder."""
    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(pattern):
        name = match[1]
        parts += [re.escape(pattern[end : match.start()]), rf"(?P<{name}>{r'[0-9]+' if name in _NUMBERS else '.+'})"]
        end = match.end()
    return re.compile("".join(parts) + re.escape(pattern[end:]))


def _fill(pattern: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m[1]], pattern)


@dataclass(frozen=True)
class Rule:
    """Official patterns on one side, ours on the other, and how the tensors become each other."""

    official: tuple[str, ...]
    ours: tuple[str, ...]
    load: Callable[[list[Tensor]], list[Tensor]]
    dump: Callable[[list[Tensor]], list[Tensor]]


def _same(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


def _cut(parts: int, dim: int, sizes: tuple[int, ...] | None) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda t: list(t[0].split(list(sizes), dim) if sizes else t[0].chunk(parts, dim))


def Rename(
    official: str, ours: str, load: Callable[[Tensor], Tensor] | None = None, dump: Callable[[Tensor], Tensor] | None = None
) -> Rule:
    """One tensor on each side; ``load``/``dump`` reshape it where the shapes differ (both or neither)."""
    if (load is None) != (dump is None):
        raise ValueError(f"{official}: give both load and dump, or neither")
    return Rule((official,), (ours,), _each(load), _each(dump))


def _each(function: Callable[[Tensor], Tensor] | None) -> Callable[[list[Tensor]], list[Tensor]]:
    return _same if function is None else lambda tensors: [function(t) for t in tensors]


def Fuse(official: Iterable[str], ours: str, dim: int = 0, sizes: tuple[int, ...] | None = None) -> Rule:
    """Several official tensors concatenated along ``dim`` are one of ours; ``sizes`` where the parts are unequal."""
    parts = tuple(official)
    return Rule(parts, (ours,), lambda t: [torch.cat(t, dim)], _cut(len(parts), dim, sizes))


def Split(official: str, ours: Iterable[str], dim: int = 0, sizes: tuple[int, ...] | None = None) -> Rule:
    """One official tensor is several of ours concatenated along ``dim``."""
    parts = tuple(ours)
    return Rule((official,), parts, _cut(len(parts), dim, sizes), lambda t: [torch.cat(t, dim)])


def Ignore(official: str) -> Rule:
    """An official tensor that we do not keep (statistics, constants); ``dump`` leaves it out."""
    return Rule((official,), (), lambda t: [], lambda t: [])


def Own(ours: str) -> Rule:
    """A tensor of ours without an official counterpart; ``load`` does not make it, ``dump`` leaves it out."""
    return Rule((), (ours,), lambda t: [], lambda t: [])


class NameMap:
    """A strict two-way map between an official state dict and ours."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def load(self, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict from the official one.

        Raises:
            StateError: a name that no rule or more than one knows, or an incomplete set of parts.
        """
        return self._map(official, [(r.official, r.ours, r.load) for r in self.rules], "official")

    def dump(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official state dict (or gradients by official name) from ours.

        Raises:
            StateError: as ``load``.
        """
        return self._map(ours, [(r.ours, r.official, r.dump) for r in self.rules], "our")

    @staticmethod
    def _map(
        given: Mapping[str, Tensor],
        sides: list[tuple[tuple[str, ...], tuple[str, ...], Callable[[list[Tensor]], list[Tensor]]]],
        whose: str,
    ) -> dict[str, Tensor]:
        compiled = [[_regex(p) for p in source] for source, _, _ in sides]
        found: dict[tuple[int, tuple[tuple[str, str], ...]], dict[int, str]] = {}
        problems = []
        for name in given:
            hits = [(r, i, m) for r, patterns in enumerate(compiled) for i, p in enumerate(patterns) if (m := p.fullmatch(name))]
            if len(hits) != 1:
                problems.append(f"{whose} {name!r} meets {len(hits)} rules, it must meet exactly one")
                continue
            rule, part, match = hits[0]
            found.setdefault((rule, tuple(sorted(match.groupdict().items()))), {})[part] = name
        result: dict[str, Tensor] = {}
        for (rule, values), parts in found.items():
            source, target, convert = sides[rule]
            absent = [_fill(p, dict(values)) for i, p in enumerate(source) if i not in parts]
            if absent:
                problems.append(f"{whose} {', '.join(absent)} missing beside {', '.join(parts.values())}")
                continue
            for pattern, tensor in zip(target, convert([given[parts[i]] for i in range(len(source))]), strict=True):
                name = _fill(pattern, dict(values))
                if name in result:
                    problems.append(f"two {whose} tensors both become {name!r}")
                result[name] = tensor.contiguous()
        if problems:
            raise StateError("; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else ""))
        return result
