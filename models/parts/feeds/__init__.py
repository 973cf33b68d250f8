"""Feeds: what a group of positions is given to be predicted from."""

from tokenloom.models.parts.feeds.base import Feed, take
from tokenloom.models.parts.feeds.next_scale import NextScale
from tokenloom.models.parts.feeds.shifted import Shifted
from tokenloom.models.parts.slots import Slots

__all__ = ["Feed", "NextScale", "Shifted", "Slots", "take"]
