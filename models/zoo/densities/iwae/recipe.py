"""IWAE: importance weighted autoencoders (Burda, Grosse and Salakhutdinov 2015, arXiv:1509.00519).

New: the bound of a variational autoencoder averages the weights of several latents before the logarithm, so that it is tighter the more
of them are drawn, and the encoder may be right for only some of them.
Differs: pixels of 256 values under a discretised logistic (arXiv:1701.05517, equation 2) with a scale a pixel, where the
paper has binarised pixels; one stochastic layer; SiLU; the loss is divided by the number of values.
Run: tokenloom run smoke_iwae
Expect: on binarised MNIST 84.78 nats with 50 latents a row against 86.76 with one in the paper (one stochastic layer); here, on held-out
digits (32x32, 4,500 digits, 1,500 steps of 64, learning rate 2e-3, judged with 500 latents), 1.343 bits a value when trained with
5 latents and 1.363 with one.
"""

from __future__ import annotations

from tokenloom.models.core.registry import register
from tokenloom.models.zoo.densities.iwae.module import IWAE


@register("iwae", kind="density", paper="1509.00519", tiny={"latent": 8, "width": 32, "samples": 3, "judged": 5})
def iwae(latent: int = 50, width: int = 200, depth: int = 2, samples: int = 50, judged: int = 100) -> IWAE.Config:
    """``latent`` numbers a row, ``depth`` hidden layers of ``width``; ``samples`` latents in training, ``judged`` after it."""
    return IWAE.Config(latent=latent, width=width, depth=depth, samples=samples, judged=judged)
