"""Drawing images from a generator and its tokenizer, or from a density: the same code for evaluation, the command line and a server.

Shapes: N images, H W rows and columns, C channels.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Conditions, Density, Generator, Labels, Tokenizer, Values
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.tokenizers.flow_tokenizer import FlowTokenizer
from tokenloom.tasks.modalities.image.served.painting import Painting, check
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import AnyRequest, Request

SHARD = 250  # images drawn at once


def sample_images(
    generator: Generator | Density,
    tokenizer: Tokenizer | None,
    request: NDArray[np.int64] | Conditions,
    sampler: Sampler,
    seed: int,
    start: int = 0,
) -> NDArray[np.uint8]:
    """The images of ``traced_images`` alone."""
    return traced_images(generator, tokenizer, request, sampler, seed, start)[0]


@torch.no_grad()
def traced_images(
    generator: Generator | Density,
    tokenizer: Tokenizer | None,
    request: NDArray[np.int64] | Conditions,
    sampler: Sampler,
    seed: int,
    start: int = 0,
    painting: Painting | None = None,
    prefix: int | None = None,
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Images (N, H, W, C) uint8 of these labels (N,), or of this condition: the samples from number ``start`` on of a request.

    Each one is a function of its label or condition, the request's seed and its number: how the request is cut into batches, or
    which worker draws it, changes nothing.

    Values are ``round((x + 1) * 127.5)`` of the decoder's output in [-1, 1].  Beside them stand the numbers of the decoding's trace,
    where the generator keeps one.  With a ``painting`` its given part is in all of them; with a ``prefix`` so many
    tokens are drawn, and decoded alone (``serving.predict.check_prefix``).
    """
    device = next(generator.parameters()).device
    conditions = Conditions.of(Labels(torch.tensor(request, dtype=torch.int64))) if isinstance(request, np.ndarray) else request
    draws = SampleDraws.of(seed, start, start + conditions.rows, device)
    if isinstance(generator, Density):
        return to_uint8(generator.sample(conditions.to(device), draws)), {}
    assert tokenizer is not None, "a generator's tokens need their tokenizer"
    if painting is not None:
        return to_uint8(painting.draw(generator, tokenizer, conditions.to(device), sampler, draws, device)), {}
    if not isinstance(generator, GroupGenerator):
        return to_uint8(tokenizer.decode(generator.generate(conditions.to(device), sampler, draws))), {}
    if prefix is not None:
        assert isinstance(tokenizer, FlowTokenizer)
        tokens, trace = generator.decode(conditions.to(device), sampler, draws, most=prefix)
        return to_uint8(tokenizer.decode_prefix(tokens, prefix)), trace.numbers()
    tokens, trace = generator.decode(conditions.to(device), sampler, draws)
    return to_uint8(tokenizer.decode(tokens)), trace.numbers()


def sample_shards(
    pair: Pair, given: AnyRequest, seed: int, rows: int = SHARD, painting: Painting | None = None, prefix: int | None = None
) -> NDArray[np.uint8]:
    """Images of any number of labels, texts or columns, ``rows`` at a time; the answer depends on the request and the seed alone."""
    pair.condition_spec.check(given)
    parts, request = [], Request.of(given)
    for start in range(0, len(request), rows):
        conditions = pair.condition_spec.conditions(request.part(start, start + rows))
        parts.append(traced_images(pair.generator, pair.tokenizer, conditions, pair.sampler, seed, start, painting, prefix)[0])
    return np.concatenate(parts)


def to_uint8(image_NCHW: torch.Tensor) -> NDArray[np.uint8]:
    """Images in [-1, 1] to bytes (N, H, W, C): ``round((x + 1) * 127.5)``, clipped."""
    x = ((image_NCHW.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def png_base64(image_HWC: NDArray[np.uint8]) -> str:
    """One image as PNG in base64 text."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def painting_of(pair: Pair, image: str, mask: str) -> Painting | None:
    """The image and the mask of a request, PNG in base64 text (both empty: none).

    Raises:
        ConfigError: one without the other, no PNG, another size than the model's, or a model that cannot draw a part.
    """
    if not image and not mask:
        return None
    if not image or not mask:
        raise ConfigError(f"{'mask' if image else 'inpaint'}: is missing; give both the image and its mask, white where it is drawn anew")
    check(pair.generator, "this model")
    values = column_of("inpaint", [image], pair.shape), column_of("mask", [mask], (1, *pair.shape[1:]))
    return Painting(values[0].value[0], values[1].value[0, 0] > 0)


def column_of(name: str, images: Sequence[str | None], shape: tuple[int, ...]) -> Values:
    """A column of the data from PNG in base64 text, one a row, as values (N, C, H, W) in [-1, 1]; a row without one is null.

    Raises:
        ConfigError: what is no PNG, or an image of another size, with its row.
    """
    channels, rows, columns = shape
    value = torch.zeros(len(images), channels, rows, columns)
    given = torch.tensor([isinstance(image, str) and bool(image) for image in images])
    for row in torch.nonzero(given).flatten().tolist():
        try:
            raw = base64.b64decode(str(images[row]), validate=True)
            value[row] = _decoded(raw, shape)
        except (binascii.Error, OSError, ValueError, SyntaxError) as error:
            raise ConfigError(
                f"column {name!r}, row {row}: {error}; give a PNG of {rows} rows and {columns} columns as base64 text, or nothing"
            ) from error
    return Values(value, given)


def _decoded(raw: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    """(C, H, W) in [-1, 1] of an image file; raises ``ValueError`` for another size before it is decoded."""
    from PIL import Image, UnidentifiedImageError

    channels, rows, columns = shape
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as opened:
            if opened.size != (columns, rows):
                raise ValueError(f"{opened.height} rows and {opened.width} columns")
            image_HWC = np.array(opened.convert("L" if channels == 1 else "RGB")).reshape(rows, columns, channels)
    except UnidentifiedImageError as error:
        raise ValueError("no PNG file") from error
    return torch.from_numpy(image_HWC).permute(2, 0, 1).float().div_(127.5).sub_(1.0)
