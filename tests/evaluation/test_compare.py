"""The leaderboard: one protocol, NLL within one tokenizer, files for people."""

from __future__ import annotations

import csv

import pytest
from stand_ins import FEW, judge_inline, new_store, world, write_generator

from tokenloom.configs.schema import SampleConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.tasks.evaluation.compare import leaderboard, write


def test_rows_hold_the_recorded_numbers_best_first():
    store = world().store
    rows = leaderboard(store, ["digits-raster", world().var.id])
    assert {row["run"] for row in rows} == {"digits-var", "digits-raster"}
    assert rows[0]["fd_classifier"] <= rows[1]["fd_classifier"]
    for row in rows:
        record = store.record(world().var if row["run"] == "digits-var" else world().raster)
        for name in ("fd_classifier", "precision", "recall", "recognition", "images_per_second", "parameters", "psnr"):
            assert row[name] == record.metrics[name]
        assert row["method"] == row["run"].removeprefix("digits-")
    assert list(rows[0]) == list(rows[1])
    assert {row["run"]: row["guidance"] for row in rows}["digits-var"] == "linear 1.5"


def test_nll_is_compared_within_one_tokenizer_only():
    store, var = world().store, world().store.record(world().var)
    assert "nll_bits_per_image" not in leaderboard(store, ["digits-var", "digits-raster"])[0]
    codec, data, judge = (var.inputs[r] for r in ("tokenizer", "dataset", "features"))
    other = judge_inline(store, "second", write_generator(store, data, codec, "second", seed=3), codec, data, judge)
    rows = leaderboard(store, ["digits-var", other.id])
    assert {row["run"]: row["nll_bits_per_image"] for row in rows} == {
        "digits-var": var.metrics["nll_bits_per_image"],
        "second": store.record(other).metrics["nll_bits_per_image"],
    }


def test_different_protocols_are_refused_with_the_field():
    store, var = world().store, world().store.record(world().var)
    inputs = [var.inputs[r] for r in ("generator", "tokenizer", "dataset", "features")]
    other = judge_inline(store, "strict", *inputs, config=FEW.model_copy(update={"neighbours": 5}))
    with pytest.raises(ConfigError, match=r"different protocols: manifold\.neighbours: 3 -> 5"):
        leaderboard(store, ["digits-var", other.id])


def test_different_guidance_is_no_other_protocol():
    store, var = world().store, world().store.record(world().var)
    inputs = [var.inputs[r] for r in ("generator", "tokenizer", "dataset", "features")]
    other = judge_inline(store, "guided", *inputs, sample=SampleConfig(guidance=3.0, guidance_schedule="constant"))
    rows = leaderboard(store, [world().var.id, other.id])
    assert {row["guidance"] for row in rows} == {"linear 1.5", "3"}


def test_references_by_generator_and_tokenizer():
    store, var = world().store, world().store.record(world().raster)
    assert leaderboard(store, [var.inputs["generator"].id])[0]["run"] == "digits-raster"
    row = leaderboard(store, [var.inputs["tokenizer"].id])[0]
    assert row["psnr"] == var.metrics["psnr"]


def test_tokenizers_alone_are_compared_by_reconstruction():
    store = world().store
    made = []
    for name, artifact in (("codec-a", world().var), ("codec-b", world().raster)):
        record = store.record(artifact)
        made.append(judge_inline(store, name, None, *[record.inputs[r] for r in ("tokenizer", "dataset", "features")]))
    rows = leaderboard(store, [a.id for a in made])
    assert {"rfd_classifier", "psnr", "ssim", "codebook_use", "parameters"} <= set(rows[0])
    assert "fd_classifier" not in rows[0]
    assert rows[0]["rfd_classifier"] <= rows[1]["rfd_classifier"]


def test_same_reference_twice_is_one_row():
    assert len(leaderboard(world().store, [world().var.id, world().var.id, world().var.fingerprint])) == 1


@pytest.mark.parametrize(("references", "message"), [(["nobody"], "'nobody' is not in the store"), ([], "name at least one run")])
def test_unknown_runs_are_one_clear_error(references, message):
    with pytest.raises(ConfigError, match=message):
        leaderboard(world().store, references)


def test_a_run_that_was_not_evaluated_says_so(tmp_path):
    from stand_ins import digits, write_dataset, write_tokenizer

    store = new_store(tmp_path)
    data = write_dataset(store, digits()[0][:40], digits()[1][:40], held_out=10)
    codec = write_tokenizer(store, data, "fresh")
    with pytest.raises(ConfigError, match="has not been evaluated: run it first"):
        leaderboard(store, [codec.id])


def test_files_are_a_table_a_plot_and_samples_side_by_side(tmp_path):
    from PIL import Image

    rows = leaderboard(world().store, ["digits-var", "digits-raster"])
    files = write(world().store, rows, tmp_path / "out")
    assert [f.name for f in files] == ["leaderboard.csv", "leaderboard.png", "samples.png"]
    with open(files[0], newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["fd_classifier"]) for row in table] == [row["fd_classifier"] for row in rows]
    with Image.open(files[1]) as plot, Image.open(files[2]) as samples:
        assert plot.size[0] > 300
        assert samples.size[1] == 2 * 4 * (64 + 2 + 2)  # four rows of samples a run, white around each
