"""Feeds: what a group of positions is given to be predicted from."""

from models.parts.feeds.base import Feed, take
from models.parts.feeds.next_scale import NextScale
from models.parts.feeds.shifted import Shifted
from models.parts.slots import Slots

__all__ = ["Feed", "NextScale", "Shifted", "Slots", "take"]
