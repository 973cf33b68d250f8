"""The benches of speed: what is timed against each other computes the same, and their page is that of their results."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.speed.families import FAMILIES, Pair
from benchmarks.speed.page import PAGE, RESULTS, page
from benchmarks.speed.timing import Compared


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_readings_compute_what_our_models_do(name: str) -> None:
    pair = Pair(FAMILIES[name], "tiny")
    pair.same_loss(pair.batch(2))
    pair.same_samples()


def test_models_that_differ_are_not_timed() -> None:
    pair = Pair(FAMILIES["llamagen_c2i"], "tiny")
    with torch.no_grad():
        pair.plain.layers[0].feed_forward.w2.weight.mul_(1.5)
    with pytest.raises(AssertionError):
        pair.same_loss(pair.batch(2))
    with pytest.raises(AssertionError, match="greedy codes"):
        pair.same_samples()


def test_the_ratio_is_that_of_the_medians() -> None:
    times = Compared(ours=(1.0, 2.0, 10.0), plain=(3.0, 4.0, 5.0))
    assert times.ratio == 2.0
    assert times.spread == (0.5, 3.0)


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page(json.loads(RESULTS.read_text()))
