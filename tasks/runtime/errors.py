"""Errors that a person can act on, raised in the middle of work (before work: ``tokenloom.models.core.config.ConfigError``)."""

from __future__ import annotations


class StepError(RuntimeError):
    """A step failed: the message names the file or value and what to do."""


class ArtifactError(StepError):
    """An artifact in the store is missing, incomplete or damaged; the message names the path."""


class MixedSizesError(ArtifactError):
    """Stored items of different sizes, where all have to have one."""


class OldRecordError(ArtifactError):
    """An artifact of an older version, whose fingerprints were others: it is left as it is and not used."""


class Preempted(StepError):  # noqa: N818  (not a failure: the run goes on later)
    """The machine is wanted back: work is checkpointed and the same command goes on (exit code 75)."""
