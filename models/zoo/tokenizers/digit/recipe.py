"""DiGIT: tokens are k-means clusters of features that a discriminative network learned (arXiv:2410.12490).

New: the latent space is that of a frozen self-supervised network instead of one learned for reconstruction, which makes it stable
under small changes of the image; k-means over its patch features gives the codes.
Differs: pixels come from a convolutional decoder trained on the centres, not from a second autoregressive model on a VQGAN's tokens.
With ``dino`` weights the features are those of the third-last block, under the last norm, as published (DINOv2-B with registers, 8,192
or 16,384 clusters).  Without the file they are those of a toy: a classifier of three convolutions, trained on the data's own labels,
so neither large nor self-supervised.  Centres follow moving averages instead of a separate k-means.
Run: tokenloom run smoke_digit
Expect: held-out digits (32x32, 400 steps of 64, learning rate 3e-3, classifier's features): 64 codes of 512, error 0.031, PSNR 21 dB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.registry import register
from tokenloom.models.core.signals import SignalSpec
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.models.parts.nets.dino import Dino
from tokenloom.models.parts.nets.frozen import Classified, Frozen
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Small
from tokenloom.models.zoo.tokenizers.digit.quantizer import Clusters


class OnFeatures(Autoencoder):
    """An autoencoder whose encoder is a frozen network; the decoder alone is trained."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Autoencoder.Config, tag="net.on_features"):
        """``net`` is ``Frozen``."""

        @property
        def needs(self) -> tuple[str, ...]:
            return ("features",) if isinstance(cast(Frozen, self.net).source, Classified) else ()

        def build(self, *, signal: SignalSpec, **given: Any) -> OnFeatures:
            """The tokenizer of images, on the classifier that ``features`` describes if it needs one."""
            net = cast(Frozen, self.net)
            if "features" in self.needs:
                net = replace(net, source=Classified(shape=given.get("features")))
            return OnFeatures(replace(self, net=net), signal)

    def adopt(self, **roles: nn.Module) -> None:
        features = roles.get("features")
        if "features" in cast(OnFeatures.Config, self.config).needs:
            if not isinstance(features, Classifier):
                raise ConfigError("features: this tokenizer needs the data's classifier and was given none")
            self.encoder.adopt(features)  # type: ignore[operator]


#: Two pixels a step suit the classifier's features, of which one stands for four pixels.
DECODER = Small(patch=2)


@register(
    "digit",
    kind="tokenizer",
    paper="2410.12490",
    tiny={"codes": 16, "dim": 16, "channels": 8, "multipliers": [1, 1], "patch": 2},
)
def digit(
    codes: int = 512,
    dim: int | None = None,
    dino: str = "",
    last: int = 3,
    small: Small = DECODER,
) -> OnFeatures.Config:
    """``dim`` channels of the features (none given: the 64 of the classifier, or those of the file);
    ``patch * 2 ** (len(multipliers) - 1)`` pixels a position of theirs (the classifier has 4).
    ``dino`` is a file of DINO or DINOv2 weights of any width, whose shape is read from it; its features are those of block ``last``
    counted from the end, 3 as published (``set`` edits ``net.source.side`` and others)."""
    source = Dino.of_file(dino, last=last, **({"width": dim} if dim else {})) if dino else Classified()
    dim = dim or (source.width if isinstance(source, Dino) else 64)
    book = Codebook.Config(codes=codes, dim=dim, update=EMA(), start=KMeans(), revival=Revival(threshold=0.1))
    return OnFeatures.Config(
        net=Frozen(source=source, geometry=small.net()),
        quantizer=Clusters.Config(codebook=book),
        latent=dim,
        quant_kernel=0,
        **small.losses(),
    )
