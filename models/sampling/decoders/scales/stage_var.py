"""Late scales without guidance: they hold detail, of which the condition says little (StageVAR, arXiv:2509.16483).

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokenloom.models.core.limits import Range
from tokenloom.models.parts.norms import Ahead
from tokenloom.models.sampling.decoders.scales.base import ScaleDecoder
from tokenloom.models.sampling.session import DecodingSession


@dataclass(frozen=True, kw_only=True)
class StageVAR(ScaleDecoder, tag="decoder.stage_var"):
    """Scales from number ``unguided`` on, counted from 0, are drawn without the null condition, whose rows leave the batch: half of the
    slots.

    With ``unguided`` of all scales, or without guidance, samples are those of the generator.
    Differs: where the late stage begins is given, not found; the paper's second means, a low-rank approximation of what late scales
    compute, is not here.
    """

    limits: ClassVar = {"unguided": Range(0, 4096)}
    paper: ClassVar = "2509.16483"
    exact: ClassVar = False

    unguided: int = 8

    def before(self, session: DecodingSession, scale: int) -> None:
        if scale != self.unguided or not session.guided:
            return
        rows = session.rows
        session.guided, session.both = False, session.plan
        session.cond = session.cond.first(rows)
        session.state = _first(session.state, rows)
        session.vectors = Ahead(session.model.feed.modulation(session.both, session.cond))
        for layer in session.cache or []:
            layer.key_BHTE, layer.value_BHTE = layer.key_BHTE[:rows], layer.value_BHTE[:rows]
        for table in ("rank_BT", "segment_BT"):
            value = getattr(session, table)
            setattr(session, table, None if value is None else value[:rows])


def _first(state: Any, rows: int) -> Any:
    """The state of a feed for the first rows alone."""
    if isinstance(state, Tensor):
        return state[:rows] if len(state) == 2 * rows else state
    return type(state)(_first(each, rows) for each in state) if isinstance(state, tuple | list) else state
