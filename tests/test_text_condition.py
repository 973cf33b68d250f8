"""Generators asked in words: captions from the source to batches, training, sampling and serving."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from toy import job, run_alone, to_file

from configs.load import load_run
from configs.schema import DataConfig, identity
from models.build import ModelSpec
from models.config import ConfigError
from models.draws import Draws
from models.generator import GroupGenerator
from models.parts.characters import Characters, Encoded
from models.protocols import Batch, Labels, Text, TextFeatures, TokenLayout, Tokens
from models.registry import get
from models.sampling.sampler import Sampler
from tasks.artifacts import Store
from tasks.asked import check_captions, reading, seen_texts
from tasks.captions import Captions, in_turn
from tasks.ingest import ingest
from tasks.loader import Loader, Rows, Shard, share
from tasks.serving.asking import Asking
from tasks.serving.drawing import Pair, sample_shards
from tasks.serving.encoder import FrozenEncoder
from tasks.tokens import write_tokens
from tasks.train_loop import train

LAYOUT = TokenLayout(grids=((2, 2),), vocabulary=4)
TEXTS = ("all zeros", "all threes")
READ: dict[str, Any] = {"length": 12, "depth": 1, "heads": 2}


def spec(condition: dict[str, Any] | None = None, **args: Any) -> ModelSpec:
    """A tiny raster generator over 2x2 tokens, asked in words unless ``condition`` is empty."""
    condition = {"characters": READ} if condition is None else condition
    edits = {"condition": condition} if condition else {}
    small = {"depth": 1, "width": 32, "heads": 2, "dropout": 0.0}
    return ModelSpec("generator", "raster", {**small, **args}, edits, {"layout": LAYOUT.to_dict(), "classes": 2, "tokenizer": None})


def model(condition: dict[str, Any] | None = None) -> GroupGenerator:
    torch.manual_seed(0)
    built = spec(condition).build()
    assert isinstance(built, GroupGenerator)
    return built


def noisy(built: GroupGenerator) -> GroupGenerator:
    """In eval mode, with weights that look at everything."""
    with torch.no_grad():
        for parameter in built.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return built.eval()


def token_rows(store: Store, captions: list[str | None], split: str = "train") -> Rows:
    """One token shard with these captions; the tokens of row i are all i % 4."""
    ids = np.repeat(np.arange(len(captions), dtype=np.uint8)[:, None] % 4, 4, axis=1)
    data = write_tokens(
        None,
        keys=[str(i) for i in range(len(captions))],
        view_N=np.zeros(len(captions), np.uint8),
        label_N=np.arange(len(captions)) % 2,
        captions=captions,
        data=ids,
        layout=LAYOUT,
        lineage={},
    )
    digest = hashlib.sha256(data).hexdigest()
    path = f"tokens/x/shards/{split}-{digest[:12]}.parquet"
    store.storage.write(path, data)
    return Rows("tokens", store.uri, (Shard(path, split, len(captions), digest, len(data)),), 2, LAYOUT.to_dict())


# --- the condition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["summary", "all"])
@torch.no_grad()
def test_a_text_is_read_alike_whatever_stands_beside_it(prefix: str) -> None:
    built = noisy(model({"characters": {**READ, "prefix": prefix}}))
    tokens = Tokens(torch.randint(4, (3, 4), generator=torch.Generator().manual_seed(0)), LAYOUT)
    together = built.log_prob(Batch(tokens=tokens, condition=Text.of(["a", "longer text", None])))
    for row, text in enumerate(("a", "longer text", "")):
        alone = built.log_prob(Batch(tokens=replace(tokens, data=tokens.data[row : row + 1]), condition=Text.of([text])))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)
    assert len({round(float(v), 4) for v in together}) == 3  # and the texts do differ
    dirty = Text.of(["a", "longer text", None])
    dirty = Text(torch.where(dirty.byte_BT == 0, 7, dirty.byte_BT), dirty.length_B)  # what stands after the end is not read
    torch.testing.assert_close(built.log_prob(Batch(tokens=tokens, condition=dirty)), together, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_missing_caption_is_the_null_text() -> None:
    built = noisy(model())
    asked = Text.of(["all zeros", None])
    assert built.condition.null(asked).length_B.tolist() == [0, 0]  # type: ignore[union-attr]
    vectors = built.condition(Text.of([None, ""])).vector_BD
    null = built.condition(built.condition.null(asked)).vector_BD
    torch.testing.assert_close(vectors, null)


@pytest.mark.parametrize("prefix", ["summary", "all"])
@torch.no_grad()
def test_guidance_goes_from_the_null_text_to_the_text(prefix: str) -> None:
    built = noisy(model({"characters": {**READ, "prefix": prefix}}))
    given, ids = Text.of(TEXTS), torch.zeros(2, 4, dtype=torch.long)
    steps = [
        list(built.decode_steps(c, built.sampler.edited(guidance=w), torch.Generator().manual_seed(0), forced=ids))
        for c, w in ((given, 1.0), (given, 0.0), (built.condition.null(given), 0.0))
    ]
    for guided, cond, null in zip(*steps):
        assert guided.logits is not None
        torch.testing.assert_close(guided.logits, 2 * cond.logits - null.logits, atol=1e-4, rtol=1e-4)
        assert (cond.logits - null.logits).abs().max() > 1e-3


def test_a_share_of_texts_is_dropped_by_the_draws_of_the_step_alone() -> None:
    rows = 400
    text, feature = Text.of(["seven"] * rows), TextFeatures(torch.ones(rows, 5, 3), torch.ones(rows, 5, dtype=torch.bool))
    for made, given in ((model(), text), (model({"encoded": {**READ, "encoder": "x", "features": 3}}), feature)):
        whole = made.condition.embed(made.condition.drop(given, Draws.whole(0, 3, rows)))[1].any(1)  # type: ignore[operator]
        assert 0.04 < 1 - float(whole.float().mean()) < 0.16
        half = made.condition.drop(given.part(200, 400), Draws(0, 3, 9, 200, 400, rows))  # type: ignore[attr-defined]
        assert torch.equal(made.condition.embed(half)[1].any(1), whole[200:])  # type: ignore[operator]
        assert bool(made.condition.embed(made.condition.drop(given, None))[1].any(1).all())  # type: ignore[operator]
        assert not made.condition.embed(made.condition.null(given))[1].any()  # type: ignore[operator]


def test_any_net_may_be_asked_in_words() -> None:
    """One with slots and steered norms, and one that looks at a memory; no part of the reader is idle."""
    for recipe, prefix in (("var", "summary"), ("infinity", "none")):
        codec = get(recipe).axes["codec"]
        made_by = ModelSpec("tokenizer", codec, dict(get(codec).tiny), {}, {"size": 16, "channels": 1})
        layout = made_by.build().layout  # type: ignore[union-attr]
        given = {"layout": layout.to_dict(), "classes": 2, "tokenizer": made_by.to_dict()}
        edits = {"condition": {"characters": {**READ, "prefix": prefix}}}
        built = ModelSpec("generator", recipe, dict(get(recipe).tiny), edits, given).build()
        shape = (2, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
        batch = Batch(tokens=Tokens(torch.zeros(shape, dtype=torch.long), layout), condition=Text.of(TEXTS))
        for parameter in built.parameters():  # heads that start at zero let nothing through
            if not parameter.any():
                torch.nn.init.normal_(parameter, 0, 0.02)
        built.losses(batch, "main", Draws.whole(0, 0, 2))["loss"].backward()
        idle = [n for n, p in built.named_parameters() if n.startswith("condition") and (p.grad is None or not p.grad.any())]
        assert not idle


def test_wrong_conditions_are_clear_errors() -> None:
    draw = torch.Generator()
    for built, wrong, message in (
        (model(), Labels(torch.tensor([1])), "conditioned on texts, got Labels"),
        (model({}), Text.of(["seven"]), "conditioned on class labels, got Text"),
        (model(), Text.of(["x" * 13]), "a text of 13 bytes; this model reads at most 12"),
        (model({"encoded": {**READ, "encoder": "x", "features": 3}}), TextFeatures(torch.zeros(1, 2, 4)), "width 4; .* of width 3"),
    ):
        with pytest.raises(ValueError, match=message):
            built.generate(wrong, built.sampler, draw)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"characters": {"lenth": 3}}, "characters: unknown field 'lenth'; fields here: length"),
        ({"characters": {"length": "long"}}, "characters.length: 'long' is not a valid int"),
        ({"letters": {}}, "write one of classes, characters, encoded"),
        ({"encoded": {"features": 3}}, "encoded: missing .* 'encoder'"),
        ({"characters": {"length": 0}}, "condition.length=0"),
        ({"characters": {"heads": 5}}, "condition.heads=5: must divide the net's width, 32"),
    ],
)
def test_a_condition_is_written_in_a_run_file_and_checked(condition: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(condition).build()


def test_fields_of_a_chosen_condition_can_be_edited_after_it() -> None:
    edits = {"condition": {"characters": {}}, "condition.length": 7}
    config = ModelSpec("generator", "raster", {}, edits).config()
    assert config.condition == Characters.Config(length=7)  # type: ignore[attr-defined]


# --- the law: what is asked for is what comes ----------------------------------------------------------------------


def trained(built: GroupGenerator, condition: Any, ids: Tensor, steps: int = 150) -> GroupGenerator:
    """Trained on these rows, their texts dropped as in a real run."""
    optimizer = torch.optim.AdamW(built.train().parameters(), lr=3e-3)
    batch = Batch(tokens=Tokens(ids, LAYOUT), condition=condition)
    for step in range(steps):
        loss = built.losses(batch, "main", Draws.whole(0, step, len(ids), steps))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return built.eval()


def test_samples_follow_the_caption() -> None:
    rows = 32
    captions = [TEXTS[i % 2] for i in range(rows)]
    ids = torch.tensor([[0] * 4, [3] * 4])[torch.arange(rows) % 2]
    built = trained(model(), Text.of(captions), ids)
    plain = Sampler()
    asked = Text.of([TEXTS[i % 2] for i in range(200)])
    drawn = built.generate(asked, plain, torch.Generator().manual_seed(1)).ids
    right = (drawn == ids[:2][torch.arange(200) % 2]).all(1).float().mean()
    assert right > 0.95
    # the null text has seen both, so it draws both
    null = built.generate(Text.of([None] * 200), plain, torch.Generator().manual_seed(1)).ids[:, 0]
    assert 0.2 < float((null == 0).float().mean()) < 0.8
    again = built.generate(asked, plain, torch.Generator().manual_seed(1)).ids
    assert torch.equal(drawn, again)
    assert not torch.equal(null, built.generate(Text.of([None] * 200), plain, torch.Generator().manual_seed(2)).ids[:, 0])


# --- captions on their way -----------------------------------------------------------------------------------------


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ("source", {"cat_a/0": "my cat", "cat_a/1": None, "dog/0": None}),
        ("none", {"cat_a/0": None, "dog/0": None}),
        ("names", {"cat_a/0": "cat a", "dog/0": "dog"}),
        ("a photo of a {name}", {"cat_a/0": "a photo of a cat a", "dog/1": "a photo of a dog"}),
    ],
)
def test_ingest_writes_the_captions_that_the_run_asks_for(
    tmp_path: Path, store: Store, captions: str, expected: dict[str, str | None]
) -> None:
    for i in range(4):
        picture(tmp_path / "images" / "cat_a" / f"{i}.png", i)
        picture(tmp_path / "images" / "dog" / f"{i}.png", 10 + i)
    (tmp_path / "images" / "cat_a" / "0.txt").write_text("my cat")
    config = DataConfig(source=f"folder:{tmp_path / 'images'}", size=8, validation=0.3, captions=captions)
    notes = store.record(ingest("x", config, store).artifact).notes
    rows = [row for s in notes["shards"] for row in pq.read_table(store.storage.local_path(s["path"])).to_pylist()]
    found = {row["key"].removesuffix(".png"): row["caption"] for row in rows}
    assert expected.items() <= found.items()


def test_the_sets_at_hand_have_captions_in_plain_words() -> None:
    from tasks.sources import digits

    source = digits()
    assert source.of_class("7", "names") == "a handwritten seven"
    assert source.of_class("7", "number {name}!") == "number seven!"
    assert [source.of_class("7", each) for each in ("source", "none")] == [None, None]
    assert not source.captioned


def test_captions_leave_older_fingerprints_as_they_are() -> None:
    plain = DataConfig(source="digits", size=32)
    assert "captions" not in identity(plain)
    assert identity(DataConfig(source="digits", size=32, captions="source")) == identity(plain)
    assert identity(DataConfig(source="digits", size=32, captions="names"))["captions"] == "names"


@pytest.mark.parametrize("captions", ["{nam}", "a", "{name} and {name}", "{name", "{name} {x}"])
def test_words_without_a_name_in_them_are_refused(captions: str) -> None:
    with pytest.raises(ValueError, match=r"write source, names, none, or a text with \{name\}"):
        DataConfig(source="digits", size=32, captions=captions)


def test_ragged_captions_come_back() -> None:
    texts = ["süß", "", None, "seven"]
    packed = Captions.of(texts)
    assert packed.texts() == ["süß", "", "", "seven"]
    assert packed.longest == 5
    assert Captions.of([None, None]).texts() == ["", ""]


def test_batches_carry_captions_and_workers_share_them(store: Store) -> None:
    texts: list[str | None] = [None, "one", "two words", "süß", "", "six"]
    rows = reading(token_rows(store, texts), Asking.of(spec()))
    loader = Loader(rows, store.cache)
    index = np.array([2, 0, 5, 3, 1, 4])
    batch = loader.get(index)
    assert isinstance(batch.condition, Text)
    read = [bytes(b[:n].tolist()).decode() for b, n in zip(batch.condition.byte_BT, batch.condition.length_B)]
    assert read == [texts[i] or "" for i in index]
    assert batch.tokens is not None
    assert batch.tokens.ids[:, 0].tolist() == (index % 4).tolist()
    for world in (2, 3):
        parts = [loader.get(index[slice(*share(6, rank, world))]).condition for rank in range(world)]
        assert torch.equal(torch.cat([p.byte_BT for p in parts]), batch.condition.byte_BT)  # type: ignore[union-attr]
    assert isinstance(Loader(token_rows(store, texts), store.cache).get(index).condition, Labels)


def test_a_caption_in_the_data_that_is_too_long_is_one_clear_error(store: Store) -> None:
    rows = reading(token_rows(store, ["short", "x" * 13]), Asking.of(spec()))
    with pytest.raises(ConfigError, match="a caption of 13 bytes, and the generator reads at most 12: raise its condition's length"):
        Loader(rows, store.cache)


def test_data_without_captions_is_one_clear_error(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"no training image has one; set data\.captions: names"):
        seen_texts(token_rows(store, [None, None]), store)
    assert seen_texts(token_rows(store, [None, "b", "a", "b"]), store) == ["b", "a"]
    run = "smoke_text"
    check_captions(load_run(run))
    for edit, message in (
        ("data.captions=source", "data.captions is 'source', but digits has none; set data.captions: names"),
        ("data.captions=none", "data.captions is 'none'; set data.captions: names"),
        ("generator.set={condition: {characters: {length: 17}}}", "length=17, but the caption of '0' has 18 bytes"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_captions(load_run(run, [edit]))


def test_any_number_of_workers_trains_on_the_same_captions(store: Store, tmp_path: Path) -> None:
    captions: list[str | None] = [None if i % 5 == 0 else f"number {i % 4}" for i in range(24)]
    rows = reading(token_rows(store, captions), Asking.of(spec()))
    jobs = []
    for folder in ("generator/one-0", "generator/two-0"):
        plain = job(store, rows, None, folder=folder, steps=3, batch=8, precision="float64")
        jobs.append(replace(plain, spec=spec().to_dict()))
    alone = train(jobs[0])
    run_alone(2, to_file(jobs[1], tmp_path / "two.json"))
    weights = [store.storage.local_path(f"{each.folder}/weights.safetensors") for each in jobs]
    from safetensors.torch import load_file

    one, two = (load_file(str(path)) for path in weights)
    assert alone["steps"] == 3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-7, rtol=0, msg=name)
    assert any((value - start).abs().max() > 1e-4 for value, start in zip(one.values(), spec().build().state_dict().values()))


def test_held_out_captions_are_taken_in_turn_by_class() -> None:
    wanted = in_turn(np.array([0, 1, 0, 0, 2]), np.array([1, 0, 0, 1, 2]), ["b1", "a1", "a2", "b2", ""])
    assert wanted == ["a1", "b1", "a2", "a1", ""]


# --- asking --------------------------------------------------------------------------------------------------------


class Painter(torch.nn.Module):
    """Stands for a tokenizer: a picture whose brightness is its first token."""

    layout = LAYOUT

    def decode(self, tokens: Tokens) -> Tensor:
        return (tokens.ids[:, :1, None, None] / 2 - 1).expand(-1, 1, 8, 8).float().clamp(-1, 1)


def pair(condition: dict[str, Any] | None = None, texts: tuple[str, ...] = TEXTS) -> Pair:
    built = noisy(model(condition))
    return Pair(built, Painter(), Sampler(), Asking.of(spec(condition), ("no", "yes"), texts))  # type: ignore[arg-type]


def test_the_same_text_and_seed_give_the_same_image() -> None:
    asked = [TEXTS[i % 2] for i in range(40)]
    first, again, other = (sample_shards(pair(), asked, seed, rows=16) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("condition", "wanted", "message"),
    [
        (None, np.array([0]), "asked for texts, and was given classes"),
        ({}, ["seven"], "asked for classes, and was given texts"),
        ({}, np.array([2]), "class_id 2: this model has the classes 0 to 1"),
        (None, ["thirteen char"], "text 'thirteen char': 13 bytes, this model reads at most 12"),
        ({"encoded": {**READ, "encoder": "nowhere", "features": 3}}, ["x"], "text encoder 'nowhere'"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_error(condition: dict[str, Any] | None, wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_shards(pair(condition), wanted, seed=0)


def test_sample_draws_texts_and_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import sample

    monkeypatch.setattr(sample, "open_model", lambda *_: (pair(), "x"))
    draw: Any = lambda name, **options: sample.sample_model("x", None, None, out=tmp_path / name, **options)  # type: ignore[arg-type]  # noqa: E731
    document = draw("a.npz", texts=["b", "a", "b"], total=5)
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["texts"].tolist() == document["texts"] == ["b", "a"]
        assert arrays["labels"].tolist() == [0, 1, 0, 1, 0]
        assert arrays["images"].shape == (5, 8, 8, 1)
    assert draw("b.npz", total=4)["texts"] == list(TEXTS)  # captions that it has seen
    draw("c.png", total=4)
    with Image.open(tmp_path / "c.png") as image:
        assert image.size[0] > 2 * 50 + 40  # two images in a row, and the text at their left
    with pytest.raises(ConfigError, match="--classes: x is asked in words; give --text"):
        draw("d.png", classes=[1])
    with pytest.raises(ConfigError, match=r"sample\.steps: the order Raster fixes its steps"):
        draw("d.png", steps=2)
    monkeypatch.setattr(sample, "open_model", lambda *_: (pair(texts=()), "x"))
    with pytest.raises(ConfigError, match="--text: x is asked in words; give at least one"):
        draw("d.png")
    monkeypatch.setattr(sample, "open_model", lambda *_: (pair({}), "x"))
    with pytest.raises(ConfigError, match="--text 'seven': x is asked for classes; give --classes"):
        draw("d.png", texts=["seven"])


def test_a_served_model_takes_text_and_steps() -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from tasks.serving.model_def import ImageModel

    served = ImageModel()
    served.pair = pair()
    ask: Any = lambda texts, **params: served.predict(None, pd.DataFrame({"text": texts}), params)["png_base64"].tolist()  # noqa: E731
    many = [TEXTS[i % 2] for i in range(12)]
    assert ask(many, seed=1) == ask(many, seed=1, steps=0) != ask(many, seed=2)
    for wrong, params, message in (
        (["x" * 13], {}, "reads at most 12"),
        (["a"], {"steps": 2}, "fixes its steps"),
    ):
        with pytest.raises(MlflowException, match=message):
            ask(wrong, **params)
    with pytest.raises(MlflowException, match="takes the column 'text', got class_id"):
        served.predict(None, pd.DataFrame({"class_id": [1]}), {})
    served.pair = pair({})
    with pytest.raises(MlflowException, match="takes the column 'class_id', got text"):
        ask(["a"])


# --- frozen encoders -----------------------------------------------------------------------------------------------

ENCODED = {"encoded": {**READ, "encoder": "stand-in", "features": 6}}


def letters(self: FrozenEncoder, texts: Any) -> TextFeatures:
    """Features of a stand-in: a random vector for each letter."""
    feature = torch.zeros(len(texts), self.length, self.features)
    mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
    for row, text in enumerate(texts):
        for column, letter in enumerate(text):
            feature[row, column] = torch.randn(self.features, generator=torch.Generator().manual_seed(ord(letter))).half().float()
            mask[row, column] = True
    return TextFeatures(feature, mask)


def test_features_are_made_once_a_caption_and_cached(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(FrozenEncoder, "check", lambda self: None)
    monkeypatch.setattr(FrozenEncoder, "__call__", lambda self, texts: asked.extend(texts) or letters(self, texts))
    rows = reading(token_rows(store, ["ab", None, "abc", "ab"]), Asking.of(spec(ENCODED)))
    batch = Loader(rows, store.cache).get(np.array([3, 1, 2, 0]))
    assert asked == ["ab", "abc"]
    Loader(rows, store.cache)
    assert asked == ["ab", "abc"]
    expected = letters(FrozenEncoder("stand-in", 12, 6), ["ab", "", "abc", "ab"])
    assert isinstance(batch.condition, TextFeatures)
    assert torch.equal(batch.condition.feature_BTD, expected.feature_BTD)
    assert torch.equal(batch.condition.mask_BT, expected.mask_BT)  # type: ignore[arg-type]


def test_samples_follow_features_of_a_frozen_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenEncoder, "__call__", letters)
    ask = Asking.of(spec(ENCODED)).condition
    ids = torch.tensor([[0] * 4, [3] * 4])[torch.arange(16) % 2]
    built = trained(model(ENCODED), ask([TEXTS[i % 2] for i in range(16)]), ids, 80)
    assert isinstance(built.condition, Encoded)
    drawn = built.generate(ask([TEXTS[1]] * 50), Sampler(), torch.Generator().manual_seed(0)).ids
    assert (drawn == 3).float().mean() > 0.9


def test_a_text_encoder_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs the package transformers; install tokenloom"):
        FrozenEncoder(str(tmp_path / "a"), 8, 16)(["x"])
    condition = f"generator.set={{condition: {{encoded: {{encoder: {tmp_path}, features: 16}}}}}}"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package transformers; install tokenloom"):
        check_captions(load_run("smoke_text", [condition]))


@pytest.mark.parametrize(("name", "fine"), [("google/t5", True), ("./near", False), ("near", False), ("/not/there", False), ("", True)])
def test_an_encoder_has_a_hub_name_or_a_whole_path(name: str, fine: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    encoder = FrozenEncoder(name or str(tmp_path / "near"), 8, 16)
    if fine:
        encoder.check()
        return
    with pytest.raises(ConfigError, match="the whole path of a folder"):
        encoder.check()


def test_features_that_no_encoder_makes_are_refused(store: Store) -> None:
    args = {**get("infinity").tiny, "text": 6}
    asking = Asking.of(ModelSpec("generator", "infinity", args))
    with pytest.raises(ConfigError, match="nothing says which encoder makes them"):
        reading(token_rows(store, ["a"]), asking)


@pytest.mark.parametrize("kind", ["t5", "bert", "clip"])
def test_real_encoders_give_features_of_each_text_alone(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "handwritten", "seven", "two"]
    split = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=split, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    torch.manual_seed(0)
    if kind == "t5":
        shape = transformers.T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        transformers.T5EncoderModel(shape).save_pretrained(tmp_path)
    elif kind == "clip":
        shape = transformers.CLIPTextConfig(
            vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=8
        )
        transformers.CLIPTextModel(shape).save_pretrained(tmp_path)
    else:
        shape = transformers.BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        transformers.BertModel(shape).save_pretrained(tmp_path)
    encoder = FrozenEncoder(str(tmp_path), 5, 16)
    together = encoder(["a handwritten seven", "", "two"])
    assert together.mask_BT is not None
    assert together.mask_BT.sum(1).tolist() == [3, 0, 1]
    assert torch.equal(together.feature_BTD[2:], encoder(["two"]).feature_BTD)
    assert together.feature_BTD[0, :3].abs().min(1).values.max() > 0
    assert not together.feature_BTD[1].any()
    with pytest.raises(ConfigError, match="6 pieces, this model reads at most 5"):
        encoder(["a a a a a a"])
    with pytest.raises(ConfigError, match=r"condition\.features=9: the encoder .* has features of width 16"):
        FrozenEncoder(str(tmp_path), 5, 9)(["a"])
    before = encoder.digest()
    settings = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings.replace('layers": 1', 'layers": 2'))
    assert encoder.digest() != before
    # Weights that are not in the files would be random ones.
    shutil.copytree(tmp_path, tmp_path / "deeper")
    with pytest.raises(ConfigError, match="its files lack weights"):
        FrozenEncoder(str(tmp_path / "deeper"), 5, 16)(["a"])
