"""Generators with text conditions: sampling and serving, with characters and with a frozen encoder."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from words import LAYOUT, READ, TEXTS, model, noisy, spec, token_rows, trained

from tokenloom.configs.load import load_run
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, TextFeatures, Tokens
from tokenloom.models.core.registry import get
from tokenloom.models.parts.characters import Encoded
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.data.conditions import check_captions, with_conditions
from tokenloom.tasks.data.loader import Loader
from tokenloom.tasks.modalities.image.served.draw import sample_shards
from tokenloom.tasks.serving.encoder import FrozenEncoder
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.serving.request import ConditionSpec
from tokenloom.tasks.store.artifacts import Store


class Painter(torch.nn.Module):
    """Stands for a tokenizer: a picture whose brightness is its first token."""

    layout = LAYOUT

    def decode(self, tokens: Tokens) -> Tensor:
        return (tokens.ids[:, :1, None, None] / 2 - 1).expand(-1, 1, 8, 8).float().clamp(-1, 1)


def pair(condition: dict[str, Any] | None = None, texts: tuple[str, ...] = TEXTS) -> Pair:
    built = noisy(model(condition))
    return Pair(built, Painter(), Sampler(), ConditionSpec.of(spec(condition), ("no", "yes"), texts))  # type: ignore[arg-type]


def test_the_same_text_and_seed_give_the_same_image() -> None:
    asked = [TEXTS[i % 2] for i in range(40)]
    first, again, other = (sample_shards(pair(), asked, seed, rows=16) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("condition", "wanted", "message"),
    [
        (None, np.array([0]), "conditioned on texts, and the request holds classes"),
        ({}, ["seven"], "conditioned on classes, and the request holds texts"),
        ({}, np.array([2]), "class_id 2: this model has the classes 0 to 1"),
        (None, ["thirteen char"], "text 'thirteen char': 13 bytes, this model takes at most 12"),
        ({"encoded": {**READ, "encoder": "nowhere", "features": 3}}, ["x"], "text encoder 'nowhere'"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_error(condition: dict[str, Any] | None, wanted: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_shards(pair(condition), wanted, seed=0)


def test_sample_draws_texts_and_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenloom.tasks.evaluation import sample

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
    with pytest.raises(ConfigError, match="--classes: x is conditioned on texts; give --text"):
        draw("d.png", classes=[1])
    with pytest.raises(ConfigError, match=r"sample\.steps: the order Raster fixes its steps"):
        draw("d.png", steps=2)
    monkeypatch.setattr(sample, "open_model", lambda *_: (pair(texts=()), "x"))
    with pytest.raises(ConfigError, match="--text: x is conditioned on texts; give at least one"):
        draw("d.png")
    monkeypatch.setattr(sample, "open_model", lambda *_: (pair({}), "x"))
    with pytest.raises(ConfigError, match="--text 'seven': x is conditioned on classes; give --classes"):
        draw("d.png", texts=["seven"])


def test_a_served_model_takes_text_and_steps() -> None:
    import pandas as pd
    from mlflow.exceptions import MlflowException

    from tokenloom.tasks.modalities.image.served.model_def import ImageModel

    served = ImageModel()
    served.pair = pair()
    ask: Any = lambda texts, **params: served.predict(None, pd.DataFrame({"text": texts}), params)["png_base64"].tolist()  # noqa: E731
    many = [TEXTS[i % 2] for i in range(12)]
    assert ask(many, seed=1) == ask(many, seed=1, steps=0) != ask(many, seed=2)
    for wrong, params, message in (
        (["x" * 13], {}, "takes at most 12"),
        (["a"], {"steps": 2}, "fixes its steps"),
        (["a"], {"guidance_schedule": "sine"}, "guidance_schedule='sine': write one of constant, linear"),
        (["a"], {"guidance_interval": "0.5"}, "give two shares of the decoding"),
        (["a"], {"guidance_interval": "half"}, "guidance_interval='half': cannot be read"),
        (["a"], {"top_p": 1.5}, r"sample\.top_p=1.5: must be a finite number between 0 and 1"),
        (["a"], {"order": "random"}, r"sample\.order=random: the order of this model, raster, is not open"),
        (["a"], {"decoder": "quick"}, r"sample\.decoder: .*quick.*write one of"),
        (["a"], {"head": '{"diffusion": {"steps": 5}}'}, r"sample\.head=.*has no settings of its own"),
        (["a"], {"cfg": 2.0}, "parameter 'cfg': this model takes seed, guidance, "),
    ):
        with pytest.raises(MlflowException, match=message):
            ask(wrong, **params)
    plain = ask(many, seed=1)
    for changed in ({"top_k": 1}, {"temperature": 50.0}, {"top_p": 0.01}, {"temperature": 5.0, "temperature_end": 50.0}):
        assert ask(many, seed=1, **changed) != plain, changed
    guided = ask(many, seed=1, guidance=30.0)
    for changed in ({"guidance_schedule": "linear"}, {"guidance_interval": "0.9,1.0"}):
        assert ask(many, seed=1, guidance=30.0, **changed) != guided, changed
    assert ask(many, top_k=1, decoder="jacobi") == ask(many, top_k=1), "the likeliest tokens, found in another way"
    with pytest.raises(MlflowException, match="takes the column 'text', got class_id"):
        served.predict(None, pd.DataFrame({"class_id": [1]}), {})
    served.pair = pair({})
    with pytest.raises(MlflowException, match="takes the column 'class_id', got text"):
        ask(["a"])


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
    rows = with_conditions(token_rows(store, ["ab", None, "abc", "ab"]), ConditionSpec.of(spec(ENCODED)))
    batch = Loader(rows, store.cache).get(np.array([3, 1, 2, 0]))
    assert asked == ["ab", "abc"]
    Loader(rows, store.cache)
    assert asked == ["ab", "abc"]
    expected = letters(FrozenEncoder("stand-in", 12, 6), ["ab", "", "abc", "ab"])
    assert isinstance(batch.conditions["features"], TextFeatures)
    assert torch.equal(batch.conditions["features"].feature_BTD, expected.feature_BTD)
    assert torch.equal(batch.conditions["features"].mask_BT, expected.mask_BT)  # type: ignore[arg-type]


def left(self: FrozenEncoder, texts: Any) -> TextFeatures:
    """The same, padded on the side that the encoder pads."""
    found = letters(self, texts)
    assert found.mask_BT is not None
    shift = [int(self.length - count) if self.padding == "left" else 0 for count in found.mask_BT.sum(1)]
    rolled = [torch.roll(each, by, 0) for each, by in zip((*found.feature_BTD, *found.mask_BT), 2 * shift)]
    return TextFeatures(torch.stack(rolled[: len(texts)]), torch.stack(rolled[len(texts) :]))


@pytest.mark.parametrize("recipe", ["raster", "infinity"])
def test_published_text_conditions_train_on_captions(recipe: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaGen's prefix of features, padded on the left, and Infinity's pooled memory, from a run's arguments to gradients."""
    monkeypatch.setattr(FrozenEncoder, "check", lambda self: None)
    monkeypatch.setattr(FrozenEncoder, "__call__", left)
    args = {**get(recipe).tiny, "text": 6, "length": 5, "encoder": "stand-in"}
    made = ModelSpec("generator", recipe, args)
    condition_spec = ConditionSpec.of(made)
    assert condition_spec.texted
    assert condition_spec.encoder == FrozenEncoder("stand-in", 5, 6, "left" if recipe == "raster" else "right")
    rows = with_conditions(token_rows(store, ["ab", None, "abc", "ab"]), condition_spec)
    conditions = Loader(rows, store.cache).get(np.array([0, 1, 2])).conditions
    asked = condition_spec.conditions(["ab", "", "abc"])
    for name in ("feature_BTD", "mask_BT"):
        assert torch.equal(getattr(conditions["features"], name), getattr(asked["features"], name)), "as in sampling"
    codec = get(get(recipe).codec)
    made_by = ModelSpec("tokenizer", codec.name, dict(codec.tiny), {}, {"signal": signals.image(16, 1).to_dict()})
    layout = made_by.build().layout  # type: ignore[union-attr]
    given = {"layout": layout.to_dict(), "classes": 2, "tokenizer": made_by.to_dict()}
    built = ModelSpec("generator", recipe, args, {}, given).build()
    for parameter in built.parameters():  # heads that start at zero let nothing through
        if not parameter.any():
            torch.nn.init.normal_(parameter, 0, 0.02)
    shape = (3, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
    tokens = Tokens(torch.zeros(shape, dtype=torch.long), layout)
    loss = built.losses(Batch(tokens=tokens, conditions=conditions), "main", Draws.whole(0, 0, 3))["loss"]
    loss.backward()
    assert bool(loss.isfinite())
    assert not [n for n, p in built.named_parameters() if n.startswith("condition") and (p.grad is None or not p.grad.any())]
    # An image without a caption has the null text.
    null = built.eval().condition(built.condition.null(conditions))  # type: ignore[operator]
    torch.testing.assert_close(built.condition(conditions).vector_BD[1], null.vector_BD[1])  # type: ignore[operator]


def test_samples_follow_features_of_a_frozen_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenEncoder, "__call__", letters)
    ask = ConditionSpec.of(spec(ENCODED)).conditions
    ids = torch.tensor([[0] * 4, [3] * 4])[torch.arange(16) % 2]
    built = trained(model(ENCODED), ask([TEXTS[i % 2] for i in range(16)]), ids)
    assert isinstance(built.condition, Encoded)
    drawn = built.generate(ask([TEXTS[1]] * 50), Sampler(), SampleDraws.of(0, 0, ask([TEXTS[1]] * 50).rows)).ids
    assert (drawn == 3).float().mean() > 0.9


def test_a_text_encoder_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs the package transformers; install tokenloom"):
        FrozenEncoder(str(tmp_path / "a"), 8, 16)(["x"])
    config = load_run("smoke_text", [f"generator.set={{condition: {{encoded: {{encoder: {tmp_path}, features: 16}}}}}}"])
    assert config.generator is not None
    made = ModelSpec("generator", config.generator.recipe or "", config.generator.args, config.generator.set)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package transformers; install tokenloom"):
        check_captions(config, ConditionSpec.of(made))


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
    condition_spec = ConditionSpec.of(ModelSpec("generator", "infinity", args))
    with pytest.raises(ConfigError, match="no encoder is named"):
        with_conditions(token_rows(store, ["a"]), condition_spec)


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
    with pytest.raises(ConfigError, match="6 pieces, this model takes at most 5"):
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
