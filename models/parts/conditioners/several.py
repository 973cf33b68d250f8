"""Several conditions at once, and conditions that are values: a control image, a mask, a source image.

Shapes: B rows, P prefix slots, T memory slots, D width, C channels, H W rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Condition, Conditions, Values
from tokenloom.models.parts.agreement import Traits
from tokenloom.models.parts.conditions import Conditioned, Conditioner, Single
from tokenloom.models.parts.plan import Plan


class Several(Conditioner):
    """Conditions beside each other: prefix slots and memories follow each other, vectors add up; each is dropped by itself."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.several"):
        """``parts`` in the order of their prefix slots, each of other conditions."""

        parts: tuple[Conditioner.Config, ...]

        def __post_init__(self) -> None:
            if not self.parts or len(set(self.names)) < len(self.names):
                raise ConfigError(f"condition.parts: {', '.join(self.names) or 'none'}: at least one, and each condition once")

        @property
        def names(self) -> tuple[str, ...]:
            return tuple(name for part in self.parts for name in part.names)

        @property
        def each(self) -> tuple[Conditioner.Config, ...]:
            return tuple(inner for part in self.parts for inner in part.each)

        @property
        def shapes(self) -> dict[str, tuple[int, ...]]:
            return {name: shape for part in self.parts for name, shape in part.shapes.items()}

    def __init__(self, config: Config, classes: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.build(classes, width) for part in config.parts)
        self.keys = tuple("+".join(part.names) for part in config.parts)

    @property
    def prefix(self) -> int:
        """Prefix slots of all."""
        return sum(self._each(i).prefix for i in range(len(self.parts)))

    def traits(self, plan: Plan) -> Traits:
        found = {name: trait for i in range(len(self.parts)) for name, trait in self._each(i).traits(plan).items()}
        return {**found, **super().traits(plan)}

    def requires(self, plan: Plan) -> Traits:
        return {name: trait for i in range(len(self.parts)) for name, trait in self._each(i).requires(plan).items()}

    def null(self, conditions: Conditions | Condition) -> Conditions:
        conditions = Conditions.of(conditions)
        for i in range(len(self.parts)):
            conditions = self._each(i).null(conditions)
        return conditions

    def drop(self, conditions: Conditions | Condition, draws: Draws | None) -> Conditions:
        conditions = Conditions.of(conditions)
        for i, key in enumerate(self.keys):
            conditions = self._each(i).drop(conditions, None if draws is None else draws.fork(key))
        return conditions

    def forward(self, conditions: Conditions | Condition) -> Conditioned:
        found = [self._each(i)(conditions) for i in range(len(self.parts))]
        memories = [each.memory_BTD for each in found if each.memory_BTD is not None]
        seen = [_whole(each.memory_seen_BT, each.memory_BTD) for each in found if each.memory_BTD is not None]
        hidden = any(each.seen_BP is not None for each in found)
        return Conditioned(
            torch.cat([each.prefix_BPD for each in found], dim=1),
            torch.stack([each.vector_BD for each in found]).sum(0),
            torch.cat([_whole(each.seen_BP, each.prefix_BPD) for each in found], dim=1) if hidden else None,
            torch.cat(memories, dim=1) if memories else None,
            torch.cat(seen, dim=1) if seen else None,
        )

    def _each(self, index: int) -> Conditioner:
        part = self.parts[index]
        assert isinstance(part, Conditioner)
        return part


def _whole(seen: Tensor | None, slots_BSD: Tensor) -> Tensor:
    return torch.ones(slots_BSD.shape[:2], dtype=torch.bool, device=slots_BSD.device) if seen is None else seen


class Control(Single):
    """An image of the data's column ``name`` as patches: prefix slots, a memory, and their mean as the vector.

    Rows without one, and those that training drops, have one learned null vector in the place of all patches.
    """

    takes = Values

    @dataclass(frozen=True, kw_only=True)
    class Config(Conditioner.Config, tag="condition.control"):
        """``name`` of the column (``data.columns``), its ``channels``, ``rows`` and ``columns``, cut into patches of ``patch`` pixels."""

        name: str = "control"
        channels: int = 1
        rows: int
        columns: int
        patch: int
        dropout: float = 0.1

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1:
                raise ConfigError(f"condition.dropout={self.dropout}: must be in [0, 1)")
            if self.patch < 1 or self.rows % self.patch or self.columns % self.patch or min(self.rows, self.columns, self.channels) < 1:
                raise ConfigError(f"condition.patch={self.patch}: must divide {self.rows} rows and {self.columns} columns")

        @property
        def names(self) -> tuple[str, ...]:
            return (self.name,)

        @property
        def shapes(self) -> dict[str, tuple[int, ...]]:
            return {self.name: (self.channels, self.rows, self.columns)}

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.config, self.rate, self.name = config, config.dropout, config.name
        self.patches = nn.Conv2d(config.channels, width, config.patch, stride=config.patch)
        self.null_value = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(self.prefix, width))

    @property
    def what(self) -> str:  # type: ignore[override]
        """For messages."""
        return f"values by the name {self.name!r}"

    @property
    def prefix(self) -> int:
        """Prefix slots P, one a patch."""
        return (self.config.rows // self.config.patch) * (self.config.columns // self.config.patch)

    def null_of(self, condition: Values) -> Values:
        return Values(condition.value, torch.zeros_like(condition.present_B))

    def drop_of(self, condition: Values, draws: Draws) -> Values:
        return Values(condition.value, condition.present_B & (draws.uniform() >= self.rate))

    def embed_of(self, condition: Values) -> Conditioned:
        """Patches (B, P, D); raises ``ValueError`` for values of another shape."""
        wanted, value = self.config.shapes[self.name], condition.value
        if tuple(value.shape[1:]) != wanted:
            if bool(condition.present_B.any()):
                raise ValueError(f"{self.name}: values of shape {tuple(value.shape[1:])}; this model takes {wanted}")
            value = value.new_zeros(len(value), *wanted)  # data without any such value does not know its shape
        x = self.patches(value).flatten(2).transpose(1, 2)
        slots_BPD = torch.where(condition.present_B[:, None, None], x, self.null_value.to(x.dtype)) + self.position
        return Conditioned(slots_BPD, slots_BPD.mean(1), None, slots_BPD, None)
