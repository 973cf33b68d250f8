"""What all sections of run and cluster files have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$"  # a folder, an experiment and a registered model can have it


class Section(BaseModel):
    """Base of all sections: unknown keys are errors and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _countable(cls, value: Any, info: ValidationInfo) -> Any:
        most = (1 << 63) - 1 if info.field_name == "seed" else (1 << 31) - 1
        if isinstance(value, int) and not -most <= value <= most:
            raise ValueError(f"must be from {-most} to {most}")
        return value
