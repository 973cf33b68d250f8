"""The section ``data.series`` of a run file: how windows are cut."""

from __future__ import annotations

from pydantic import Field

from tokenloom.configs.section import Section
from tokenloom.models.core.config import Identity


class SeriesConfig(Section):
    """How windows are cut from series: ``history`` values that are given and ``horizon`` values to forecast."""

    history: Identity[int] = Field(ge=1, description="values before a forecast")
    horizon: Identity[int] = Field(ge=1, description="values of a forecast")
    stride: Identity[int] = Field(1, ge=1, description="values between the starts of two training windows")
    season: Identity[int] = Field(1, ge=1, description="period of the seasonal naive forecast, in values; 1 repeats the last value")
    values: Identity[list[str] | None] = Field(None, description="names of the value columns; all numeric ones if not given")
