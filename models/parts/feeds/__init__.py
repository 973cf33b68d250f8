"""Feeds: what a group of positions is given to be predicted from."""

from models.parts.feeds.base import Feed, Slots, take
from models.parts.feeds.next_scale import NextScale
from models.parts.feeds.shifted import Shifted

__all__ = ["Feed", "NextScale", "Shifted", "Slots", "take"]
