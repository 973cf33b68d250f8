"""The section ``evaluate`` of a run file: what is measured, and under which protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tokenloom.configs.section import Section
from tokenloom.models.core.config import Added, Identity

Metric = Literal[
    "fd", "kid", "is", "precision_recall", "density_coverage", "nll", "recognition", "memorisation", "reconstruction", "text",
    "mase", "crps", "mse", "sfid"]  # fmt: skip
#: How images reach the 299 x 299 pixels of the Inception network: as ADM and torch-fidelity, pytorch-fid, or clean-fid do.
Resize = Literal["tensorflow", "half_pixel", "bicubic"]
#: What is measured unless the run says otherwise.
METRICS: tuple[Metric, ...] = ("fd", "precision_recall", "nll", "recognition", "memorisation", "reconstruction", "text")
#: Those that judge a tokenizer; the others judge samples.
TOKENIZER_METRICS: tuple[Metric, ...] = ("reconstruction", "text")
#: Those that judge a density.
DENSITY_METRICS: tuple[Metric, ...] = ("fd", "kid", "is", "precision_recall", "density_coverage", "nll", "memorisation")


class EvaluateConfig(Section):
    """The evaluation protocol, recorded with every number."""

    samples: Identity[int] = Field(1000, ge=10, description="generated samples, spread evenly over the classes")
    metrics: Identity[list[Metric]] = Field(default_factory=lambda: list(METRICS), description="what is measured")
    neighbours: Identity[int] = Field(3, ge=1, description="k of precision/recall and density/coverage")
    components: Identity[int] = Field(50, ge=1, description="principal components of the pixels that precision/recall use")
    seed: Identity[int] = 0
    shard: Identity[int] = Field(250, ge=1, description="samples drawn from one seed; the unit of parallel sampling")
    features: Identity[str] = Field(
        "auto",
        description="auto (a classifier trained on the data: fd_classifier), or inception (fid), which `tokenloom import inception FILE` "
        "brings into the store",
    )
    resize: Added[Resize] = Field("tensorflow", description="how images reach Inception's 299 pixels")
    reference: Added[str] = Field(
        "held_out", description="what samples are compared with: held_out, train (all of it), or an ADM reference FILE.npz"
    )
    extrapolate: Added[bool] = Field(False, description="also the Fréchet distance at infinitely many samples (fid_infinity)")
    bootstrap: Added[int] = Field(
        0, ge=0, le=10_000, description="resamples of the Fréchet distance's interval of 95 % (fid_low, fid_high); 0 is none"
    )
    labels: Added[Literal["even", "random"]] = Field("even", description="classes of the samples: in turn, or drawn by the seed")

    @model_validator(mode="after")
    def _of_the_network(self) -> EvaluateConfig:
        asked = {
            "metrics: [sfid]": "sfid" in self.metrics,
            "resize": self.resize != "tensorflow",
            "reference": self.reference != "held_out",
        }
        if self.features == "auto" and (wrong := [name for name, set_ in asked.items() if set_]):
            raise ValueError(f"{wrong[0]} goes with features: inception, not with a classifier of the data (features: auto)")
        return self
