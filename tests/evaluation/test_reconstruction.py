"""What is measured of a tokenizer: detail, text, budget, speed and use of codes, against answers known beforehand."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from stand_ins import digits, judge_inline, world
from torch import Tensor, nn

from tokenloom.configs.schema import EvaluateConfig
from tokenloom.models.core.protocols import Batch, Tokenizer, TokenLayout, Tokens
from tokenloom.tasks.evaluation import compare, plots
from tokenloom.tasks.modalities.image.judging import pixels, reading, reconstruction


class Fixed(Tokenizer):
    """Tokens that are given, and pictures that are grey."""

    def __init__(self, layout: TokenLayout, data: Callable[[int], Tensor], lengths: Callable[[int], Tensor] | None = None) -> None:
        super().__init__()
        self._layout, self._data, self._lengths = layout, data, lengths

    @property
    def layout(self) -> TokenLayout:
        return self._layout

    def losses(self, batch: Batch, phase: str, draws: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def encode(self, image_BCHW: Tensor) -> Tokens:
        rows = len(image_BCHW)
        return Tokens(self._data(rows), self._layout, self._lengths(rows) if self._lengths else None)

    def decode(self, tokens: Tokens) -> Tensor:
        return torch.zeros(len(tokens.data), 1, 32, 32)


def coded(layout: TokenLayout, data: Callable[[int], Tensor], lengths: Callable[[int], Tensor] | None = None) -> reconstruction.Coded:
    return reconstruction.code(Fixed(layout, data, lengths), digits()[0][:30], batch=20)


# --- detail ---------------------------------------------------------------------------------------------------


def test_detail_of_the_original_of_a_blurred_and_of_a_noisy_image():
    x = np.random.default_rng(0).integers(60, 196, (4, 32, 32, 1)).astype(np.uint8)
    assert pixels.detail(x, x) == 100.0
    blurred = gaussian_filter(x.astype(float), (0, 6, 6, 0))
    assert pixels.detail(x, blurred) == pytest.approx(0, abs=0.5)
    half = blurred + (x - blurred) / 2
    assert pixels.detail(x, half) == pytest.approx(10 * math.log10(4), abs=0.1)  # half of the detail's amplitude is missing
    other = np.random.default_rng(1).integers(60, 196, x.shape)
    assert pixels.detail(x, other) == pytest.approx(-10 * math.log10(2), abs=0.3)  # as much made-up detail as there was


def test_a_shift_in_brightness_is_no_loss_of_detail():
    x = digits()[0][:5].astype(float)
    assert pixels.detail(x, x + 20) == 100.0
    assert pixels.psnr(x, x + 20) < 25
    flat = np.full((1, 12, 12, 1), 7.0)
    assert (pixels.detail(flat, flat), pixels.detail(flat, x[:1, :12, :12])) == (100.0, 100.0 if not x[0, :12, :12].any() else -100.0)


# --- budget and codes -----------------------------------------------------------------------------------------


def test_bits_of_ids_of_several_codebooks_and_of_latents():
    one = coded(TokenLayout(grids=((2, 2), (4, 4)), vocabulary=512), lambda b: torch.zeros(b, 20, dtype=torch.int64))
    assert reconstruction.cost_scores(one)["bits_per_image"] == 20 * 9
    books = coded(TokenLayout(grids=((4, 4),), vocabulary=2, codebooks=18), lambda b: torch.zeros(b, 16, 18, dtype=torch.int64))
    costs = reconstruction.cost_scores(books)
    assert (costs["tokens_per_image"], costs["bits_per_image"]) == (16, 16 * 18)
    latents = coded(TokenLayout(grids=((4, 4),), channels=8), lambda b: torch.zeros(b, 16, 8))
    assert reconstruction.cost_scores(latents)["bits_per_image"] == 16 * 8 * 16
    assert reconstruction.code_counts(latents.tokens)[1] == []
    assert reconstruction.codebook_scores(np.zeros((0, 0), np.int64)) == {}
    assert costs["encoded_per_second"] > 0
    assert costs["decoded_per_second"] > 0


def test_padding_of_ragged_rows_costs_nothing_and_is_not_counted():
    layout = TokenLayout(grids=((1, 6),), vocabulary=4, axis="sequence")
    made = coded(layout, lambda b: torch.tensor([1, 1, 2, 3, 3, 3]).repeat(b, 1), lambda b: torch.full((b,), 3))
    assert reconstruction.cost_scores(made)["bits_per_image"] == 3 * 2
    count, _ = reconstruction.code_counts(made.tokens)
    assert count.tolist() == [[0, 60, 30, 0]]


def test_use_of_scales_adds_up_and_of_codebooks_does_not():
    layout = TokenLayout(grids=((1, 1), (1, 2)), vocabulary=4, codebooks=2)
    ids = torch.tensor([[0, 0], [1, 0], [2, 0]])  # book 0: three codes, book 1: one
    count, names = reconstruction.code_counts(coded(layout, lambda b: ids.repeat(b, 1, 1)).tokens)
    assert names == ["1x1 book 0", "1x1 book 1", "1x2 book 0", "1x2 book 1"]
    found = reconstruction.codebook_scores(count, books=2)
    assert found["codebook_use"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert found["codebook_perplexity"] == pytest.approx(math.sqrt(3 * 1))
    assert found["codebook_use_scale_1_book_0"] == 2 / 4
    single = reconstruction.codebook_scores(count[:, :][[0, 2]])
    assert single["codebook_use"] == 3 / 4
    assert single.keys() >= {"codebook_use_scale_0", "codebook_perplexity_scale_1"}
    plain = reconstruction.codebook_scores(count[[0, 1]], books=2)
    assert plain.keys() >= {"codebook_use_book_0", "codebook_use_book_1"}


def test_many_codes_and_tiny_codebooks():
    big = TokenLayout(grids=((4, 4),), vocabulary=1 << 18)
    ids = torch.randint(0, 1 << 18, (20, 16), generator=torch.Generator().manual_seed(0))
    count, names = reconstruction.code_counts(coded(big, lambda b: ids[:b]).tokens)
    assert count.shape == (1, 1 << 18)
    assert count.sum() == 30 * 16
    found = reconstruction.codebook_scores(count)
    assert 0 < found["codebook_use"] < 1e-2
    assert len(plots.codebook(count, names, [0.1], [2.0])) < 200_000
    bits = TokenLayout(grids=((4, 4),), vocabulary=2, codebooks=40)
    tiny, named = reconstruction.code_counts(coded(bits, lambda b: (torch.arange(16 * 40) % 2).view(1, 16, 40).repeat(b, 1, 1)).tokens)
    assert tiny.shape == (40, 2)
    assert plots.codebook(tiny, named, [1.0] * 40, [2.0] * 40).startswith(b"\x89PNG")


def test_a_model_without_any_tensor_is_judged_where_it_is():
    assert reconstruction.device_of(nn.Identity()) == torch.device("cpu")


# --- text -----------------------------------------------------------------------------------------------------


def test_edits_and_accuracy():
    assert [reading.edits(a, b) for a, b in (("", "AB"), ("AB", "AB"), ("BA", "AB"), ("AXB", "AB"), ("KITTEN", "SITTING"))] == [
        2,
        0,
        2,
        1,
        3,
    ]
    assert reading.accuracy(["AB", "", "ABXYZ"], ["AB", "AB", "AB"]) == pytest.approx((1 + 0 + 0) / 3)


@pytest.mark.parametrize(("size", "channels", "dark"), [(16, 1, True), (32, 3, False), (64, 1, True)])
def test_words_fit_the_image_and_differ(size, channels, dark):
    image, texts = reading.render(size, channels, dark, count=12)
    assert image.shape == (12, size, size, channels)
    ink = image if dark else 255 - image
    assert all(one.max() > 150 for one in ink)
    assert ink[:, [0, -1]].max() < 128  # nothing is cut off
    assert len(set(texts)) > 8


@pytest.mark.skipif(not reading.available(), reason="tesseract is not installed")
def test_text_is_kept_by_an_exact_copy_and_lost_by_a_blur():
    kept, both, note = reading.preservation(lambda image: image, 32, 1, dark=True)
    assert (kept["text"], note) == (1.0, "")
    assert kept["text_ceiling"] > 0.9
    assert both.shape == (2, reading.COUNT, 32, 32, 1)
    lost, _, _ = reading.preservation(lambda image: gaussian_filter(image, (0, 3, 3, 0)), 32, 1, dark=True)
    assert lost["text"] < 0.2


@pytest.mark.parametrize(("size", "installed", "why"), [(32, False, "not installed"), (8, True, "reads only")])
def test_text_that_cannot_be_read_is_no_number_but_a_note(size, installed, why, monkeypatch):
    if not installed:
        monkeypatch.setattr(reading, "PROGRAM", "no-such-program")
    elif not reading.available():
        pytest.skip("tesseract is not installed")
    numbers, both, note = reading.preservation(lambda image: image, size, 1, dark=True)
    assert numbers == {}
    assert why in note
    assert len(both) == 2


# --- evaluation and leaderboard -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    made = []
    config = EvaluateConfig(metrics=["reconstruction", "text"])
    for name, artifact in (("codec-a", world().var), ("codec-b", world().raster)):
        record = world().store.record(artifact)
        made.append(judge_inline(world().store, name, None, *[record.inputs[r] for r in ("tokenizer", "dataset", "features")], config))
    return made


def test_a_tokenizer_s_evaluation_has_all_measures(alone):
    record = world().store.record(alone[0])
    assert {"detail", "bits_per_image", "tokens_per_image", "encoded_per_second", "decoded_per_second"} <= record.metrics.keys()
    assert record.metrics["bits_per_image"] == 21 * 4
    assert ("text" in record.metrics) is reading.available()
    assert ("skipped" in record.notes) is not reading.available()
    assert record.notes["protocol"]["text"]["program"] == "tesseract"
    names = {f["path"].rsplit("/", 1)[1] for f in record.files}
    assert {"text.png", "reconstructions.npz", "reconstructions.png"} <= names


def test_tokenizers_stand_in_groups_of_one_budget(alone, tmp_path):
    rows = compare.leaderboard(world().store, [a.id for a in alone])
    assert [(row["run"], row["budget"]) for row in rows] == [("codec-b", "64 bits"), ("codec-a", "84 bits")]
    files = {path.name: path for path in compare.write(world().store, rows, tmp_path / "out")}
    assert files.keys() == {"leaderboard.csv", "leaderboard.md", "leaderboard.json", "leaderboard.png", "reconstructions.png"}
    text = files["leaderboard.md"].read_text().splitlines()
    assert [line.split("|")[1].strip() for line in text[2:]] == ["**64 bits an image**", "codec-b", "**84 bits an image**", "codec-a"]
    assert json.loads(files["leaderboard.json"].read_text())["rows"] == rows
    from PIL import Image

    with Image.open(files["reconstructions.png"]) as picture:
        assert picture.size[1] == 3 * (64 + 2 + 2)  # originals and two tokenizers


def test_nearly_equal_budgets_are_one_group():
    rows = [{"run": str(bits), "bits_per_image": float(bits), "rfd": bits} for bits in (256, 100, 250, 263, 104)]
    found = compare._by_budget(rows, "bits_per_image")
    assert [(row["run"], row["budget"]) for row in found] == [
        ("100", "100-104 bits"), ("104", "100-104 bits"), ("256", "250-256 bits"), ("250", "250-256 bits"), ("263", "263 bits"),
    ]  # fmt: skip


def test_generators_keep_their_board(tmp_path):
    rows = compare.leaderboard(world().store, ["digits-var", "digits-raster"])
    assert compare.budgets(rows) == {}
    assert {path.name for path in compare.write(world().store, rows, tmp_path)} == {"leaderboard.csv", "leaderboard.png", "samples.png"}


def test_one_command_writes_the_page(alone, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    path = Path(__file__).parents[2] / "benchmarks" / "tokenizers.py"
    spec = importlib.util.spec_from_file_location("tokenizers_page", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        page = tmp_path / "tokenizers.md"
        begin, end = module.MARKS["fashion"]
        page.write_text(f"words before\n{begin}\nold\n{end}\nwords after\n")
        module.refresh(page, world().store, [a.id for a in alone], 5)
    finally:
        del sys.modules[spec.name]
    text = page.read_text()
    assert "| **64 bits an image** |" in text
    assert "old" not in text
    assert text.startswith("words before")
    assert text.endswith("words after\n")
    for picture in ("leaderboard.png", "reconstructions.png"):
        assert (tmp_path / "pictures" / "tokenizers" / picture).stat().st_size > 1000
