"""Files of prompts become folders that GenEval, DPG-Bench and HPS read, with a record beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from words import LAYOUT, model, noisy, spec

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import Tokens
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.modalities.base import SampleRequest
from tokenloom.tasks.modalities.image.sampling import sample
from tokenloom.tasks.runtime.progress import silent
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import ConditionSpec

GENEVAL = [{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}, {"tag": "x", "prompt": "a cat"}]


class Squares(nn.Module):
    """Decodes 2x2 ids to an image of 4x4 pixels whose quarters have the ids' brightness."""

    layout = LAYOUT

    def decode(self, tokens: Tokens) -> Tensor:
        quarters = tokens.data.float().view(-1, 1, 2, 2) / 2 - 0.75
        return quarters.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    tokenizer: Any = Squares()
    return Pair(noisy(model()), tokenizer, Sampler(), ConditionSpec.of(spec(), ["a", "b"], []), "image", (3, 4, 4))


def drawn(pair: Pair, prompts: Path, out: Path, **options: Any) -> dict[str, Any]:
    return sample(pair, "the model", SampleRequest(out, 100, 7, prompts=prompts, **options), None, silent)  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_geneval(pair: Pair, tmp_path: Path) -> None:
    prompts = tmp_path / "evaluation_metadata.jsonl"
    prompts.write_text("\n".join(map(json.dumps, GENEVAL)))
    rewrites = tmp_path / "rewrites.json"
    rewrites.write_text(json.dumps({"a cat": "a grey cat"}))
    told = drawn(pair, prompts, tmp_path / "out", rewrites=rewrites)
    assert (told["layout"], told["samples"], told["each"]) == ("geneval", 8, 4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000", "00001"]
    for number, about in enumerate(GENEVAL):
        folder = tmp_path / "out" / f"{number:05d}"
        assert lines(folder / "metadata.jsonl") == [about]
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{i:05d}.png" for i in range(4)]
    head, *rows = lines(tmp_path / "out.jsonl")
    assert (head["seed"], head["each"], head["sampler"]["guidance"]["value"]) == (7, 4, pair.sampler.guidance.value)
    assert [row["number"] for row in rows] == list(range(8))
    assert {row["drawn"] for row in rows if row["prompt"] == "a cat"} == {"a grey cat"}
    # One more prompt before: the numbers move; the same number and text draw the same image, whatever else is drawn.
    again = drawn(pair, prompts, tmp_path / "again", rewrites=rewrites, each=4)
    assert again["samples"] == 8
    name = "00001/samples/00002.png"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_dpg_grids_are_cut_where_its_program_cuts(pair: Pair, tmp_path: Path) -> None:
    table = tmp_path / "dpg_bench.csv"
    table.write_text('item_id,text,proposition_id\nbear,"a bear, red",1\nbear,"a bear, red",2\nsea,the sea,1\n')
    drawn(pair, table, tmp_path / "dpg")
    assert sorted(path.name for path in (tmp_path / "dpg").iterdir()) == ["bear.png", "sea.png"]
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "bear.txt").write_text("a bear, red")
    (folder / "sea.txt").write_text("the sea\n")
    drawn(pair, folder, tmp_path / "texts")
    with Image.open(tmp_path / "dpg" / "sea.png") as picture, Image.open(tmp_path / "texts" / "sea.png") as other:
        assert picture.size == (8, 8)
        assert picture.tobytes() == other.tobytes()
        whole = np.asarray(picture)
    plain = tmp_path / "two.txt"
    plain.write_text("a bear, red\nthe sea\n")
    drawn(pair, plain, tmp_path / "plain", each=4)
    for number, (x, y) in enumerate([(0, 0), (4, 0), (0, 4), (4, 4)]):
        with Image.open(tmp_path / "plain" / f"00001-{number}.png") as one:
            assert np.array_equal(np.asarray(one), whole[y : y + 4, x : x + 4])


def test_hps_has_a_folder_a_style(pair: Pair, tmp_path: Path) -> None:
    prompts = tmp_path / "anime.json"
    prompts.write_text(json.dumps(["a cat", "a dog", "a cat"]))
    drawn(pair, prompts, tmp_path / "hps")
    assert [path.name for path in (tmp_path / "hps").iterdir()] == ["anime"]
    assert sorted(path.name for path in (tmp_path / "hps" / "anime").iterdir()) == [f"{i:05d}.jpg" for i in range(3)]


@pytest.mark.parametrize(
    ("name", "text", "options", "why"),
    [
        ("a.jsonl", '{"tag": "x"}', {}, "line 1: no prompt, but None"),
        ("a.jsonl", "a dog", {}, "line 1: is no JSON"),
        ("a.csv", "id,prompt\n1,a dog\n", {}, "no column item_id and text; it has id, prompt"),
        ("a.csv", "item_id,text\n../1,a dog\n", {}, "is no name of a file"),
        ("a.json", '{"anime": "a dog"}', {}, "'anime' is no style with a list"),
        ("a.txt", "\n", {}, "holds no prompt"),
        ("a.md", "a dog", {}, "give GenEval's .jsonl"),
        ("a.txt", "a dog that is much longer", {}, r"00000 \('a dog that is much longer'\): .*25 bytes.*at most 12"),
        ("a.csv", "item_id,text\n1,a dog\n", {"each": 3}, "--each 3: DPG-Bench reads one"),
        ("a.json", '["a dog"]', {"each": 2}, "--each 2: HPS reads one"),
        ("a.txt", "a dog", {"texts": ["a cat"]}, "goes with none of --text"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_drawn(
    pair: Pair, tmp_path: Path, name: str, text: str, options: dict[str, Any], why: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=why):
        drawn(pair, tmp_path / name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.jsonl").exists()


def test_a_folder_in_use_and_a_rewrite_of_nothing_are_refused(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "b.json").write_text('{"a cow": "a brown cow"}')
    with pytest.raises(ConfigError, match="'a cow' is no prompt of the file"):
        drawn(pair, tmp_path / "a.txt", tmp_path / "out", rewrites=tmp_path / "b.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        drawn(pair, tmp_path / "a.txt", tmp_path / "out")
