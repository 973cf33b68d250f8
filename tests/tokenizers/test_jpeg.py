"""The JPEG codec: bytes and coefficients are the same thing, any bytes decode, and other programs see the same picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.zoo.tokenizers.jpeg.codec import DIAGONALS, ZIGZAG, Jpeg, huffman, legal, quantization
from tokenloom.models.zoo.tokenizers.jpeg.module import END, JpegTokenizer

Ints = NDArray[np.int64]
SIZES = [(1, 16, 16), (3, 16, 16), (1, 9, 20), (3, 17, 8)]


def image(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth picture with some noise, in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(1, channels, 3, 3, generator=draw) * 2 - 1, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.randn(1, channels, height, width, generator=draw)).clamp(-1, 1)


def picture(data: bytes) -> Ints:
    """What PIL sees, (H, W) or (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(data))).astype(np.int64)


def tokenizer(size: int = 16, channels: int = 1, **args: int) -> JpegTokenizer:
    built = ModelSpec("tokenizer", "jpeg", {"length": 160, **args}, {}, {"signal": signals.image(size, channels).to_dict()}).build()
    assert isinstance(built, JpegTokenizer)
    return built


@pytest.mark.parametrize("channels", [1, 3])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_coefficients_to_bytes_and_back_is_exact(channels: int, data: st.DataObject) -> None:
    """Dense and sparse blocks, long runs of zeros, the largest magnitudes."""
    codec = Jpeg(50, channels, 16, 8)
    value = st.one_of(st.just(0), st.integers(-2, 2), st.integers(-1100, 1100))
    blocks = legal(data.draw(arrays(np.int64, (codec.blocks, 64), elements=value, fill=st.just(0))))
    scan = codec.write(blocks)
    assert (codec.read(scan) == blocks).all()
    assert codec.write(codec.read(scan)) == scan


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_are_read_and_their_repair_is_a_valid_scan(data: bytes) -> None:
    codec = Jpeg(50, 3, 16, 16)
    found = codec.read(data)
    assert found.shape == (codec.blocks, 64)
    assert (legal(found) == found).all()
    assert (codec.read(codec.write(found)) == found).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_ids_decode_to_a_picture_that_other_programs_see(data: st.DataObject) -> None:
    model = tokenizer()
    rows = data.draw(st.lists(st.lists(st.integers(0, END), min_size=160, max_size=160), min_size=1, max_size=2))
    tokens = Tokens(torch.tensor(rows).to(model.layout.id_dtype), model.layout)
    decoded = model.decode(tokens)
    assert decoded.shape == (len(rows), 1, 16, 16)
    assert float(decoded.abs().max()) <= 1
    again = model.encode(decoded)
    assert model.decode(again).isfinite().all()
    for file in model.files(tokens):  # what random bytes ask for beyond 8 bits is cut differently by every decoder
        assert picture(file).shape == (16, 16)


def test_bytes_after_the_end_and_after_a_marker_change_nothing() -> None:
    model = tokenizer()
    ids = model.encode(image(1, 16, 16)).ids
    used = int((ids[0] != END).sum())
    assert used < 150
    other = ids.clone()
    other[0, used + 1 :] = torch.randint(0, 256, (160 - used - 1,))
    before = model.decode(Tokens(ids.to(model.layout.id_dtype), model.layout))
    assert torch.equal(model.decode(Tokens(other.to(model.layout.id_dtype), model.layout)), before)
    codec, scan = model.codec, bytes(ids[0, :used].tolist())
    assert (codec.read(scan + b"\xff\xd9\x12\x34") == codec.read(scan)).all()
    assert (codec.read(scan + b"\x12\x34") == codec.read(scan)).all()
    half = next(i for i in range(used // 2, used) if scan[i - 1] != 0xFF)
    assert (codec.read(scan[:half] + b"\xff\xd9" + scan[half:]) == codec.read(scan[:half])).all()
    assert (codec.read(scan[:half]) != codec.read(scan)).any()


def test_missing_bytes_leave_flat_blocks_of_the_last_mean() -> None:
    codec = Jpeg(50, 1, 16, 16)
    blocks = codec.coefficients(image(1, 16, 16))[0]
    scan = codec.write(blocks)
    found = codec.read(scan[: len(scan) // 2])
    whole = [bool((a == b).all()) for a, b in zip(found, blocks)]
    assert whole[0], "what was there is kept"
    assert not whole[-1]
    assert (found[-1, 1:] == 0).all()
    assert found[-1, 0] == found[-2, 0]
    assert (codec.read(b"") == 0).all()


def test_means_that_run_away_stay_within_eight_bits() -> None:
    """Every block asks for the largest step upwards that a code can say; what was read can be written."""
    book, codec = huffman("dc", 0), Jpeg(50, 1, 16, 16)
    end = huffman("ac", 0)
    block = f"{book.code[11]:0{book.length[11]}b}" + 11 * "1" + f"{end.code[0]:0{end.length[0]}b}"
    bits = 4 * block
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    found = codec.read(data)
    assert found[:, 0].tolist() == [1023] * 4
    assert (codec.read(codec.write(found)) == found).all()


@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@pytest.mark.parametrize("quality", [20, 50, 90])
def test_the_file_is_the_same_picture_elsewhere(channels: int, height: int, width: int, quality: int) -> None:
    """PIL's decoder rounds in integers; colour conversion may add another level."""
    codec = Jpeg(quality, channels, height, width)
    given_BCHW = image(channels, height, width)
    blocks = codec.coefficients(given_BCHW)
    ours = ((codec.image(blocks)[0] + 1) * 127.5).round().long().permute(1, 2, 0).numpy()
    theirs = picture(codec.file(codec.write(blocks[0]))).reshape(height, width, channels)
    assert np.abs(ours - theirs).max() <= (1 if channels == 1 else 2)
    assert np.abs(ours - ((given_BCHW[0] + 1) * 127.5).permute(1, 2, 0).numpy()).mean() < 30


@pytest.mark.parametrize("channels", [1, 3])
def test_scans_of_another_encoder_are_read_and_written_to_the_same_bytes(channels: int) -> None:
    """PIL's encoder uses the same tables; its transform is in integers, so some coefficients round the other way."""
    codec, given_BCHW = Jpeg(75, channels, 32, 32), image(channels, 32, 32)
    level = ((given_BCHW[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(level if channels == 3 else level[..., 0]).save(stream, "JPEG", quality=75, subsampling=0)
    header, scan = stream.getvalue().split(b"\xff\xda")
    scan = scan[int.from_bytes(scan[:2], "big") : -2]
    theirs, ours = codec.read(scan), codec.coefficients(given_BCHW)[0]
    assert codec.write(theirs) == scan
    assert np.abs(theirs - ours).max() <= 1
    assert (theirs != ours).mean() < 0.03
    for table in range(2 if channels == 3 else 1):
        assert bytes(codec.steps[table].tolist()) in header
        for kind in ("dc", "ac"):
            assert huffman(kind, table).counts + huffman(kind, table).symbols in header


def test_tables() -> None:
    assert ZIGZAG[:10] == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]
    assert sorted(ZIGZAG) == list(range(64))
    assert DIAGONALS == (1, 3, 6, 10, 15, 21, 28, 36, 43, 49, 54, 58, 61, 63, 64)
    assert quantization(50)[0, :4].tolist() == [16, 11, 12, 14]
    assert (quantization(100) == 1).all()
    for kind, table in (("dc", 0), ("dc", 1), ("ac", 0), ("ac", 1)):
        book = huffman(kind, table)
        assert sum(book.counts) == len(set(book.symbols)) == (12 if kind == "dc" else 162)
        assert book.lookup[-1] == (0, 0), "all ones is no code"


def test_a_picture_that_does_not_fit_loses_its_highest_frequencies() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 1, 16, 16, generator=draw) * 2 - 1
    errors = []
    for length in (24, 48, 96, 400):
        model = tokenizer(length=length)
        tokens = model.encode(noise)
        found = model.coefficients(tokens)
        true = model.codec.coefficients(noise)
        kept = int(np.abs(found).sum((0, 1)).nonzero()[0].max()) + 1
        assert (found[..., 1] == true[..., 1]).all() or kept == 1
        errors.append(float((model.decode(tokens) - noise).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert (found == true).all(), "the last length holds everything"


def test_encoding_is_exact_for_the_default_on_smooth_pictures() -> None:
    model = tokenizer(size=32, length=registry.get("jpeg").config().length)  # type: ignore[attr-defined]
    given_BCHW = torch.cat([image(1, 32, 32, seed) for seed in range(5)])
    tokens = model.encode(given_BCHW)
    assert (model.coefficients(tokens) == model.codec.coefficients(given_BCHW)).all()
    assert not list(model.parameters())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: tokenizer(quality=0), "quality=0"),
        (lambda: tokenizer(channels=2), "channels=2"),
        (lambda: tokenizer(length=20), "length=20"),
    ],
)
def test_impossible_values_name_the_field(make, field: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=field):
        make()


HALVED = [(16, 16), (32, 48), (40, 24), (17, 9)]


@pytest.mark.parametrize(("height", "width"), HALVED)
def test_colour_at_half_the_resolution_is_that_of_other_programs(height: int, width: int) -> None:
    """PIL reads our file as we do, and our codec reads its scan: the same blocks in the same order, chroma averaged over four pixels.

    What lies outside of the picture is everybody's own: blocks are compared where units are whole.
    """
    codec = Jpeg(75, 3, height, width, "4:2:0")
    assert codec.blocks == 6 * (-(-height // 16)) * (-(-width // 16))
    given_BCHW = image(3, height, width)
    blocks = codec.coefficients(given_BCHW)
    assert (codec.read(codec.write(blocks[0])) == blocks[0]).all()
    ours = ((codec.image(blocks)[0] + 1) * 127.5).round().long().permute(1, 2, 0).numpy()
    assert np.abs(ours - picture(codec.file(codec.write(blocks[0])))).max() <= 3
    if height % 16 or width % 16:
        return
    level = ((given_BCHW[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(level).save(stream, "JPEG", quality=75, subsampling=2)
    scan = stream.getvalue().split(b"\xff\xda")[1]
    scan = scan[int.from_bytes(scan[:2], "big") : -2]
    theirs = codec.read(scan)
    assert codec.write(theirs) == scan
    assert np.abs(theirs - blocks[0]).max() <= 1
    assert (theirs != blocks[0]).mean() < 0.03


def test_the_papers_quality_and_size_are_accepted() -> None:
    model = tokenizer(size=256, channels=3, quality=25, length=16384)
    assert model.codec.blocks == 1536
    given_BCHW = image(3, 256, 256)
    tokens = model.encode(given_BCHW)
    assert int((tokens.ids != END).sum()) < 16384
    assert (model.coefficients(tokens) == model.codec.coefficients(given_BCHW)).all()
    with pytest.raises(ConfigError, match=r"length=16384: the means of 3072 blocks"):
        ModelSpec("tokenizer", "jpeg", {"length": 16384, "chroma": "4:4:4"}, {}, {"signal": signals.image(256, 3).to_dict()}).build()
