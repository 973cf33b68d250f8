"""The champion moved by a person: promoted, or put back to an earlier one, with who and why kept in the registry.

Each move is a tag of the registered model, ``tokenloom.champion.NUMBER``: JSON with version, the one before it, who, why and when.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.tracking.registry import PROMOTED
from tokenloom.tasks.tracking.runs import user

if TYPE_CHECKING:
    from tokenloom.tasks.store.artifacts import Store
    from tokenloom.tasks.tracking.registry import Registry, Version

CHAMPION = "champion"
_MOVE = "tokenloom.champion."
_LONGEST = 1000  # characters of a reason


def promote(registry: Registry, store: Store, name: str, number: str, why: str, who: str | None = None) -> dict[str, Any]:
    """Make a version the champion, whatever the gate said.

    Args:
        registry: of models.
        store: whose lease keeps a run from deciding at the same time.
        name: of the registered model.
        number: of the version.
        why: for people.
        who: the user's name on this machine if not given.

    Returns:
        The move: ``version``, ``before`` (None for the first), ``who``, ``why``, ``when``.

    Raises:
        ConfigError: no such version, it is the champion already, or no reason.
        StepError: the registry is away.
    """
    if not why.strip():
        raise ConfigError("--why: say why, in a few words; it is kept in the registry")
    version = registry.numbered(name, number)
    with store.lease(f"champion-{name}"):
        before = registry.alias(name, CHAMPION)
        if before is not None and before.number == version.number:
            raise ConfigError(f"{version.uri} is the champion already")
        return _move(registry, version, before, why, who)


def rollback(registry: Registry, store: Store, name: str, why: str, who: str | None = None) -> dict[str, Any]:
    """Make the champion before the present one the champion again.

    Raises:
        ConfigError: there is no champion, or none before it is known.
        StepError: the registry is away.
    """
    if not why.strip():
        raise ConfigError("--why: say why, in a few words; it is kept in the registry")
    with store.lease(f"champion-{name}"):
        present = registry.alias(name, CHAMPION)
        if present is None:
            raise ConfigError(f"models:/{name}: there is no champion to go back from")
        earlier = _before(present, moves(registry, name), registry.champions(name))
        if earlier is None:
            raise ConfigError(f"{present.uri} is the first champion: there is none before it")
        return _move(registry, registry.numbered(name, earlier), present, why, who)


def moves(registry: Registry, name: str) -> list[dict[str, Any]]:
    """The moves of a model's champion that people have made, oldest first."""
    found = [json.loads(value) for key, value in registry.model_tags(name).items() if key.startswith(_MOVE)]
    return sorted(found, key=lambda move: move["when"])


def _before(present: Version, moved: list[dict[str, Any]], promoted: list[str]) -> str | None:
    """The champion before the present one: as the last move to it says, else the newest version below that the gate had promoted."""
    for move in reversed(moved):
        if move["version"] == present.number:
            return move["before"] if move["before"] is None else str(move["before"])
    below = [number for number in promoted if int(number) < int(present.number)]
    return max(below, key=int, default=None)


def _move(registry: Registry, version: Version, before: Version | None, why: str, who: str | None) -> dict[str, Any]:
    when = datetime.now(UTC).isoformat(timespec="microseconds")
    move = {"version": version.number, "before": before.number if before else None, "who": who or user(), "why": why.strip()[:_LONGEST]}
    move["when"] = when
    key = f"{_MOVE}{when.partition('+')[0]}"  # without the offset: a tag's name may have no plus
    registry.tag_model(version.name, {key: json.dumps(move)})
    registry.set_alias(version, CHAMPION)
    registry.tag(version, {"tokenloom.decision": f"promoted by {move['who']}: {move['why']}", PROMOTED: "true"})
    return move


def line(name: str, move: Mapping[str, Any]) -> str:
    """A move for people."""
    before = f" in place of version {move['before']}" if move["before"] else ""
    return f"models:/{name}/{move['version']} is champion{before}: {move['why']} ({move['who']}, {move['when'][:16].replace('T', ' ')} UTC)"
