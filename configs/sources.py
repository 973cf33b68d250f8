"""Sections of a run file about sources: what the hub has, and the parts of a blend."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenloom.configs.section import Section
from tokenloom.models.core.config import Added, Execution, Identity


class HubConfig(Section):
    """Which part of a data set of the hub (``hf://OWNER/NAME@REVISION``), and how it is read."""

    config: Added[str | None] = Field(None, description="configuration (subset) of the data set; its default one if not given")
    split: Added[str | None] = Field(None, description="one of its splits; all of them, as training, validation and test, if not given")
    streaming: Execution[bool] = Field(False, description="read rows where they are, instead of a copy on this machine")


class PartConfig(Section):
    """One source of a blend; what it does not say is that of ``data``."""

    source: Identity[str] = Field(description="as data.source")
    weight: Identity[float] = Field(1.0, gt=0, description="how often its rows are drawn in training, beside those of the other parts")
    columns: Added[dict[str, str] | None] = Field(None, description="as data.columns")
    image_column: Added[str | None] = None
    label_column: Added[str | None] = None
    caption_column: Added[str | None] = None
    split_column: Added[str | None] = None
    splits: Added[Literal["folders", "keyed"] | None] = None
    hub: Added[HubConfig | None] = None
