"""A stack of sequence mixers with states of fixed size: training in parallel, decoding in constant memory.

Shapes: B rows, S slots, T slots so far, D width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import Added, ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import TokenLayout
from tokenloom.models.parts.agreement import Trait, Traits
from tokenloom.models.parts.conditions import Conditioned
from tokenloom.models.parts.dropout import branch
from tokenloom.models.parts.mlp import MLP
from tokenloom.models.parts.nets.recurrent.branching import Branches
from tokenloom.models.parts.nets.slots import SlotNet, modulation_of
from tokenloom.models.parts.norms import BlockNorm, PreNorm
from tokenloom.models.parts.plan import Plan
from tokenloom.models.parts.slots import Slots
from tokenloom.models.parts.visibility import Causal, Everything, Visibility


@dataclass
class State:
    """What a layer keeps of all slots so far; updated in place, its size does not depend on their number.

    After ``fix`` it also keeps a snapshot after each slot since the last ``rewind``, to which each row can go back by itself.  While
    ``branches`` are set, new slots do not follow one another but hang on a tree: each goes on from the snapshot of its parent.
    """

    tensors: dict[str, Tensor]
    used: int = 0
    at_B: Tensor | None = None
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)
    branches: Branches | None = None

    @property
    def start(self) -> int | Tensor:
        """Index of the next slot: of all rows, or (B or 1,)."""
        return self.used if self.at_B is None else self.at_B

    def steps(self, slots: int, device: torch.device) -> Tensor:
        """(B or 1, S) places of the new slots in the sequence."""
        if self.branches is not None:
            return self.branches.step_BS
        start = self.start
        return torch.arange(slots, device=device) + (torch.full((1, 1), start, device=device) if isinstance(start, int) else start[:, None])

    def earlier(self, name: str) -> Tensor:
        """(B, 1 + N, …) a tensor before the first slot and after each slot since the last ``rewind``."""
        return torch.cat([snapshot[name] for snapshot in self.snapshots], dim=1)

    def update(self, slots: int, **tensors: Tensor) -> None:
        """Overwrite the tensors after so many more slots."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
        self.used += slots

    def advance(self, **tensors_BS: Tensor) -> None:
        """The same from the states (B, S, …) after each of the new slots; without ``fix`` the last one of each is enough (S = 1)."""
        if self.at_B is not None:
            self.snapshots.append(tensors_BS)
        self.update(next(iter(tensors_BS.values())).shape[1], **{name: each[:, -1] for name, each in tensors_BS.items()})

    def fix(self, at_B: Tensor) -> None:
        """From now on the next slot is ``at_B`` (B or 1,), moved by its owner, and snapshots are kept."""
        self.at_B = at_B
        self.rewind(None)

    def rewind(self, count_B: Tensor | None) -> None:
        """The state after the first ``count_B`` (B,) slots since the last call (None: as it is now); the others are forgotten."""
        if count_B is not None:
            for name, tensor in self.tensors.items():
                each = self.earlier(name)
                index = count_B.view(-1, *[1] * (each.ndim - 1)).expand(-1, 1, *each.shape[2:])
                tensor.copy_(each.gather(1, index)[:, 0])
        self.snapshots = [{name: tensor.unsqueeze(1).clone() for name, tensor in self.tensors.items()}]

    def copy(self) -> State:
        """A snapshot of the whole state."""
        tensors = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return State(tensors, self.used, self.at_B, list(self.snapshots))

    def restore(self, saved: State) -> None:
        """Go back to what ``copy`` gave."""
        for name, tensor in saved.tensors.items():
            self.tensors[name].copy_(tensor)
        self.used, self.snapshots = saved.used, list(saved.snapshots)

    def truncate(self, slots: int) -> None:
        """Does nothing where all slots stay; a state cannot forget the last ones.

        Raises:
            ConfigError: some slots should not stay in visibility.
        """
        if slots < self.used:
            raise ConfigError(f"a recurrent net keeps no single slots, so it cannot forget the last {self.used - slots}: use a transformer")


class Mixer(nn.Module, ABC):
    """Mixes slots causally: what a slot gets depends on itself and on earlier slots.

    Without a state it works on a whole sequence in parallel; with one it goes on from there and updates it.
    """

    #: The map back to the residual stream.
    out: nn.Linear
    #: Whether slots may hang on a tree (``State.branches``).
    trees: ClassVar[bool] = False

    class Config(configs.Config, ABC):
        """Settings of a mixer; concrete ones are frozen dataclasses."""

        def build(self, width: int) -> Mixer:
            """The module for this width."""
            return self.construct(width)

    @abstractmethod
    def state(self, rows: int, like: Tensor) -> State:
        """The state before the first slot, on the device of ``like``."""

    @abstractmethod
    def forward(self, x_BSD: Tensor, state: State | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""

    def initialise(self) -> None:
        """Set the weights that need other initial values than the net's usual ones; called after those are drawn."""


class Places(nn.Module):
    """A learned vector for each position of the layout; slots without a place get none."""

    def __init__(self, layout: TokenLayout, width: int, std: float, spare: int = 0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(layout.length + spare, width))
        nn.init.trunc_normal_(self.position, std=std)

    def forward(self, position_BS: Tensor) -> Tensor:
        """(B or 1, S, D)."""
        return self.position[position_BS.clamp(min=0)] * (position_BS >= 0).unsqueeze(-1)


class SequenceNet(SlotNet):
    """Blocks of a mixer and, where there is one, an MLP, over slots in sequence order."""

    keeps: ClassVar[Literal["slots", "state", "other"]] = "state"

    @dataclass(frozen=True, kw_only=True)
    class Config(SlotNet.Config, tag="net.sequence"):
        """``mlp`` None: mixers alone (Mamba); ``position_std``: initial size of learned positions (0: none), whose table has
        ``spare`` rows after the last position."""

        width: int
        depth: int
        mixer: Mixer.Config
        norm: BlockNorm.Config = PreNorm.Config()
        mlp: MLP.Config | None = None
        position_std: float = 0.02
        dropout: float = 0.0
        drop_path: float = 0.0
        std: float = 0.02
        spare: Added[int] = 0

        @property
        def label(self) -> str:
            return self.mixer.label + self.norm.suffix

    def __init__(self, config: Config, layout: TokenLayout) -> None:
        super().__init__()
        if config.depth < 1:
            raise ConfigError(f"net.depth={config.depth}: must be at least 1")
        if not 0 <= config.dropout < 1 or not 0 <= config.drop_path < 1:
            raise ConfigError(f"net.dropout={config.dropout}, net.drop_path={config.drop_path}: must be in [0, 1)")
        self.config, self.width = config, config.width
        branches = 1 if config.mlp is None else 2
        self.norm = config.norm.build(config.width, config.depth, branches)
        self.mixer = nn.ModuleList([config.mixer.build(config.width) for _ in range(config.depth)])
        self.mlp = nn.ModuleList([config.mlp.build(config.width) for _ in range(config.depth)] if config.mlp else [])
        self.places = Places(layout, config.width, config.position_std, config.spare) if config.position_std else None
        self.drop_rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        initialise(self, config.std, math.sqrt(branches * config.depth))

    def requires(self, plan: Plan) -> Traits:
        return {"slots in sequence order": Trait("yes", "net"), "padded prefix slots": Trait("none", "net")}

    def check(self, plan: Plan) -> None:
        if plan.window is not None:
            raise ConfigError(f"order.window={plan.window}: a recurrent net forgets no single slots, so it needs an order without a window")

    def cache(self, rows: int, slots: int, like: Tensor) -> list[Any]:
        """States before the first slot: as large for any number of slots."""
        return [mixer.state(rows, like) for mixer in self.mixer]  # type: ignore[operator]

    def forward(
        self,
        slots: Slots,
        visibility: Visibility,
        cond: Conditioned,
        cache: list[Any] | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Hidden states (B, S, D), after the last norm.

        Raises:
            ConfigError: a plan or feed by which a slot attends to later ones, or not to all earlier ones.
        """
        require_causal(slots, visibility)
        x_BSD, modulation = slots.x_BSD, modulation_of(slots, cond)
        if self.places is not None:
            x_BSD = x_BSD + self.places(slots.position_BS)
        shared = self.norm.shared(modulation)
        for i, mixer in enumerate(self.mixer):
            how = self.norm.modulate(i, modulation, shared)
            y = mixer(self.norm.enter(i, 0, x_BSD, how[0]), cache[i] if cache else None)
            x_BSD = self.norm.join(i, 0, x_BSD, branch(self.norm.gate(y, how[0]), self.config.dropout, self.drop_rates[i], draws))
            if len(self.mlp):
                y = self.mlp[i](self.norm.enter(i, 1, x_BSD, how[1]))
                x_BSD = self.norm.join(i, 1, x_BSD, branch(self.norm.gate(y, how[1]), self.config.dropout, self.drop_rates[i], draws))
        return self.norm.last(x_BSD, modulation)


def initialise(net: nn.Module, std: float, residual: float) -> None:
    """Normal weights with ``std``, maps to the residual stream divided by ``residual``, then what parts set themselves."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, (Mixer, MLP)):
            module.out.weight.data /= residual
        if isinstance(module, (Mixer, BlockNorm)):
            module.initialise()


def require_causal(slots: Slots, visibility: Visibility) -> None:
    """Raise ``ConfigError`` unless each of the new slots attends to itself and to all slots before it, and nothing else."""
    alone = slots.x_BSD.shape[1] == 1 and isinstance(visibility, Everything)
    if not (alone or isinstance(visibility, Causal)) or slots.queries:
        raise ConfigError(
            "this net runs over slots in sequence order: each attends to itself and all earlier ones. The order or feed has something "
            "else (groups of several positions, a window, queries, masked or padded slots): use one position a group, such as the "
            "order of raster, or a transformer"
        )
