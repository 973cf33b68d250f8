"""ReFiT: the codebook of a trained tokenizer is rebuilt and the tokenizer fine-tuned (VQ-DDM, arXiv:2112.01799, section 3.2).

New: of a large codebook few codes are used; encoder and decoder of the trained tokenizer stay, its codebook is replaced by the k-means
centres of what the encoder gives, fewer and all in use, and all of it is trained on.  Discrete diffusion then has fewer states.
Differs: the clustered vectors are those of the first global batch, at most ``samples`` a code, the same on all workers; the paper's come
from the whole training set.
Run: tokenloom run smoke_vq_refit
Expect: a codebook of 512 in place of one of 16,384 reconstructs better in the paper, since it is used evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from tokenloom.models.core import config as configs
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokenizer
from tokenloom.models.core.registry import register
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.parts.quantizers.vq import VQ
from tokenloom.models.tokenizers.autoencoder import Autoencoder


class Refit(Autoencoder):
    """The base tokenizer with another codebook; all but the codes start from the base's weights."""

    @dataclass(frozen=True, kw_only=True)
    class Config(configs.Config, tag="model.refit"):
        """``codes`` of the rebuilt codebook, ``start`` how they are found."""

        codes: int = 512
        start: KMeans = KMeans()

        @property
        def needs(self) -> tuple[str, ...]:
            return ("tokenizer",)

        @property
        def axis_labels(self) -> dict[str, str]:
            return super().axis_labels | {"quantizer": "vq, rebuilt by k-means"}

        def build(self, *, signal: SignalSpec, **given: Any) -> Refit:
            """The tokenizer of images, of the nets of the base whose config is ``tokenizer``.

            Raises:
                ConfigError: no base, or one without a codebook.
            """
            base = given.pop("tokenizer", None)
            quantizer = getattr(base, "quantizer", None)
            if not isinstance(base, Autoencoder.Config) or not isinstance(quantizer, VQ.Config):
                found = "none is given" if base is None else f"{type(base).__qualname__} has none"
                raise ConfigError(
                    f"tokenizer: this tokenizer rebuilds the codebook of its base, and {found}; give tokenizer.base.recipe: vq"
                )
            book = replace(quantizer.codebook, codes=self.codes, start=self.start)
            return Refit(replace(base, quantizer=replace(quantizer, codebook=book)), signal, **given)

    def adopt(self, **roles: nn.Module) -> None:
        """Start from the trained base's nets; the codes wait for what its encoder gives."""
        super().adopt(**roles)
        base = roles["tokenizer"]
        assert isinstance(base, Tokenizer)
        own = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith(("quantizer.", "adversarial."))}
        missing, surplus = self.load_state_dict(own, strict=False)
        assert not surplus, surplus
        assert all(name.startswith(("quantizer.", "adversarial.")) for name in missing), missing


@register(
    "vq_refit",
    kind="tokenizer",
    paper="2112.01799",
    tiny={"codes": 8},
    codec="vq",
)
def vq_refit(codes: int = 512, iterations: int = 10, samples: int = 32) -> Refit.Config:
    """``codes`` found by ``iterations`` of Lloyd's algorithm on at most ``samples`` vectors a code."""
    return Refit.Config(codes=codes, start=KMeans(iterations=iterations, samples=samples))
