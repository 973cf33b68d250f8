"""One model of each official family from its fixture's weights: imported, sampled, evaluated, and every option of sampling tried.

A family has an option, or refuses it by name.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import stand_ins
import torch
from inline_runs import CPU, in_process
from painter import CHANNELS, for_family
from safetensors.torch import load_file

from tokenloom.configs.schema import EvaluateConfig, SampleConfig
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Condition, Conditions, Density, Generator, Labels, TextFeatures
from tokenloom.models.pretrained import families
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.evaluation.evaluate import evaluate, plan_density_evaluation, plan_evaluate
from tokenloom.tasks.evaluation.sample import open_model, sample_model
from tokenloom.tasks.modalities.image.judging.features import Protocol, features
from tokenloom.tasks.serving.predict import Pair
from tokenloom.tasks.store.artifacts import Artifact, StepSpec, Store
from tokenloom.tasks.store.official import import_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"

#: Every option of sampling, a value that makes a difference, and the values that go before it.
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "guidance": ({"guidance": 9.0}, {}),
    "guidance_schedule": ({"guidance_schedule": "linear"}, {"guidance": 9.0, "guidance_schedule": "constant"}),
    "guidance_interval": ({"guidance_interval": (0.0, 0.4)}, {"guidance": 9.0, "guidance_schedule": "constant"}),
    "temperature": ({"temperature": 20.0}, {}),
    "temperature_end": ({"temperature_end": 40.0}, {}),
    "top_k": ({"top_k": 1}, {}),
    "top_p": ({"top_p": 0.01}, {}),
    "steps": ({"steps": 2}, {}),
    "order": ({"order": "halton"}, {}),
}
GUIDED, LOGITS, SCHEDULE = ("guidance", "guidance_schedule", "guidance_interval"), ("temperature", "top_k", "top_p"), ("steps", "order")
STEPPED = (*GUIDED, "temperature", "temperature_end", "top_k", "top_p")
#: The options that each family has; others are refused by name.
HAS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("digit_gpt", "flexvar", "infinity", "infinity_patchify", "llamagen_c2i", "llamagen_t2i", "nar", "npp"), STEPPED),
    **dict.fromkeys(("open_magvit2_gpt", "par", "rar", "var", "var_shared_aln"), STEPPED),
    **dict.fromkeys(("arpg", "randar", "halton_maskgit", "tokenbridge"), (*STEPPED, *SCHEDULE)),
    **dict.fromkeys(("titok_imagebert", "titok_uvitbert"), (*STEPPED, "steps")),
    **dict.fromkeys(("ear", "mar"), (*GUIDED, *SCHEDULE)),
    **dict.fromkeys(("fractalgen_ar", "fractalgen_mar", "fractalgen_guiding"), ("guidance", "guidance_schedule", "temperature")),
    **dict.fromkeys(("acdit", "acdit_deep"), GUIDED),
    "xar": GUIDED,
    "himar": (*GUIDED, "steps"),
    "arinar": (*GUIDED, *SCHEDULE),
    **dict.fromkeys(("far_frequency", "far_frequency_nomask"), GUIDED),
    "starflow": ("guidance", "temperature"),
    "arflow": ("guidance",),
    "flowpp": (),
    "pfgmpp": (),
    "tarflow": ("guidance", "guidance_schedule"),
    "glow": ("temperature",),
}
#: Those that are asked in ids of a tokenizer of texts that is not here.
ALONE = {"nextstep_head"}
#: Families of tokenizers and of their parts, which draw nothing.
CODES = {name for name in families() if name.startswith("vqpt_")} | {
    *("ibq", "infinity_bsq", "llamagen_vq", "mar_klvae", "maskgit_vqgan", "open_magvit2_lfq"),
    *("titok", "titok_legacy", "titok_legacy_stage1", "var_vqvae"),
}
#: Seconds each: tried with everything else that is long.
SLOW = (
    "xar",
    "far_frequency",
    "himar",
    "fractalgen_ar",
    "fractalgen_mar",
    "fractalgen_guiding",
    "tokenbridge",
    "mar",
    "npp",
    "open_magvit2_gpt",
    "infinity_patchify",
)
EACH = [pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in HAS]


def fixture(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((FIXTURES / f"{name}.json").read_text()), load_file(str(FIXTURES / f"{name}.safetensors"))


def test_every_family_is_here() -> None:
    whole = {name for name in families() if (FIXTURES / f"{name}.json").is_file()}
    assert whole == HAS.keys() | CODES | ALONE


@pytest.fixture(name="store", scope="module")
def store_fixture(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return stand_ins.new_store(tmp_path_factory.mktemp("official"))


def judged_by(store: Store, side: int, classes: int, words: tuple[str, ...] = ()) -> tuple[Artifact, Artifact]:
    """Coloured images of this size and so many classes, with captions of these ``words``, and the network that judges them."""
    rows = max(40, 2 * classes)
    label = np.arange(rows) % classes
    noise = np.random.default_rng(0).integers(0, 60, (rows, side, side, CHANNELS))
    dataset = stand_ins.write_dataset(
        store, (noise + 15 * (label % 10)[:, None, None, None]).astype(np.uint8), label, held_out=20,
        captions=[f"{words[k % len(words)]} {k}" for k in label] if words else None,
    )  # fmt: skip
    step = StepSpec("features", 1, "features", "quick", {"protocol": asdict(Protocol(steps=4))}, {"dataset": dataset})
    return dataset, features(step, store).artifact


def imported(name: str, store: Store) -> Artifact:
    info, _ = fixture(name)
    codec = for_family(store, name, info)
    files = FIXTURES / f"{name}.safetensors", FIXTURES / f"{name}.json"
    return import_checkpoint(name, *files, name.replace("_", "-"), store, None if codec is None else codec.id).artifact


def asked(info: dict[str, Any], inputs: dict[str, torch.Tensor], rows: int) -> Conditions:
    """The same condition in every row."""
    condition: Condition = Labels(torch.full((rows,), 2))
    if "in/caption_gen" in inputs:
        condition = TextFeatures(inputs["in/caption_gen"][:1].expand(rows, -1, -1), inputs["in/emb_mask"][:1].expand(rows, -1))
    elif "in/y_uncond" in inputs:
        condition = TextFeatures(inputs["in/y"][:1].expand(rows, -1, -1))
    elif "in/gen_kv_compact" in inputs:
        condition = TextFeatures(inputs["in/gen_kv_compact"][None, : info["config"]["gen_lens"][0]].expand(rows, -1, -1))
    return Conditions.of(condition)


def drawn(pair: Pair, conditions: Conditions, seed: int = 0) -> torch.Tensor:
    draws = SampleDraws.of(seed, 0, conditions.rows)
    if isinstance(pair.generator, Density):
        return pair.generator.sample(conditions, draws)
    return pair.generator.generate(conditions, pair.sampler, draws).data


def without_filters(pair: Pair) -> Pair:
    """Random weights are sure of themselves: a higher temperature lets seeds and filters show."""
    if isinstance(pair.generator, Density) or not pair.generator.layout.discrete:
        return pair
    return replace(pair, sampler=replace(pair.sampler.edited(temperature=4.0), top_k=0, top_p=1.0))


@pytest.mark.parametrize("name", EACH)
def test_an_import_is_sampled_under_every_option_that_it_has(name: str, store: Store, tmp_path: Path) -> None:
    info, inputs = fixture(name)
    made = imported(name, store)
    published, _ = open_model(made.id, store)
    if isinstance(published.generator, Generator):
        assert published.sampler == (getattr(families()[name].config(info), "sampler", None) or Sampler())
    conditions = asked(info, inputs, 2)
    pair = without_filters(published)
    first = drawn(pair, conditions)
    assert torch.equal(first, drawn(pair, conditions))
    assert not torch.equal(first, drawn(pair, conditions, seed=1))
    assert not torch.equal(first[0], first[1])
    same = []
    for option, (change, before) in OPTIONS.items():
        if name == "halton_maskgit" and option == "order":  # whose own is the Halton sequence
            change = {"order": "raster"}
        if name == "himar" and option == "steps":  # whose own are two
            change = {"steps": 3}
        if option not in HAS[name]:
            with pytest.raises(ConfigError, match=rf"sample\.{option.removesuffix('_end')}"):
                pair.edited(**change)
            continue
        start = pair.edited(**{key: value for key, value in before.items() if key in HAS[name]})
        if torch.equal(drawn(start, conditions) if before else first, drawn(start.edited(**change), conditions)):
            same.append(option)
    assert same == []


#: Families that are asked in words.
TEXTED = ("llamagen_t2i", "infinity", "infinity_patchify")
SHORT = ("var", "ear", "glow")
QUICK = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in HAS if name not in (*TEXTED, "starflow")]


@pytest.mark.parametrize("name", QUICK)
def test_an_import_is_sampled_by_name_and_evaluated(name: str, store: Store, tmp_path: Path) -> None:
    made = imported(name, store)
    sample_model(made.id, store, None, total=3, classes=[0], out=tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as arrays:
        images = arrays["images"]
    assert len(images) == 3
    assert (images[0] != images[1]).any()
    record = store.record(made)
    dataset, judge = judged_by(store, images.shape[1], record.notes["spec"]["given"]["classes"] or 1)
    config = EvaluateConfig(samples=10, shard=5, neighbours=1, components=2, metrics=["fd", "nll"])
    if made.kind == "density":
        step = plan_density_evaluation(name, made, dataset, judge, config)
    else:
        step = plan_evaluate(name, made, record.inputs["tokenizer"], dataset, judge, SampleConfig(), config, store)
    with mock.patch("tokenloom.tasks.modalities.image.judging.sampling_actor.shared_out", in_process):
        evaluation = store.record(evaluate(step, store, CPU).artifact)
    assert any(key.startswith("fd") and np.isfinite(value) for key, value in evaluation.metrics.items())
    if made.kind == "generator":  # the paper's, as nothing else was asked for
        assert evaluation.notes["sampler"] == (getattr(families()[name].config(fixture(name)[0]), "sampler", None) or Sampler()).to_dict()


def text_encoder(width: int) -> tuple[Any, Any, int]:
    """An opened text encoder of this width: a piece a word, and a random vector for each."""

    def split(text: str, return_tensors: str) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[sum(word.encode()) % 64 for word in text.split()]])}

    def model(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.randn(64, width, generator=torch.Generator().manual_seed(0))[input_ids])

    return split, model, width


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] if name != "llamagen_t2i" else []) for name in TEXTED])
def test_a_model_of_texts_is_asked_in_words(name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info, _ = fixture(name)
    files, codec = (FIXTURES / f"{name}.safetensors", FIXTURES / f"{name}.json"), for_family(store, name, info)
    assert codec is not None
    width = info["config"].get("caption_dim") or info["config"]["text_channels"]
    monkeypatch.setattr("tokenloom.tasks.serving.encoder._opened", lambda _: text_encoder(width))
    made = import_checkpoint(name, *files, "in-words", store, codec.id, "someone/t5").artifact
    assert made != imported(name, store), "the encoder is a part of the import"

    def drawn_of(*texts: str, **options: Any) -> np.ndarray:
        sample_model(made.id, store, None, total=2 * len(texts), texts=texts, out=tmp_path / "out.npz", **options)
        with np.load(tmp_path / "out.npz") as arrays:
            return np.asarray(arrays["images"])

    # Random weights are sure of themselves: a higher temperature lets seeds and texts show.
    hot = {"temperature": 4.0, "top_k": 0, "top_p": 1.0}
    both = drawn_of("a red dog", "a cat", **hot)
    assert len(both) == 4
    assert (both[0] != both[2]).any(), "samples of a text differ"
    assert (both == drawn_of("a red dog", "a cat", **hot)).all()
    hot["guidance"] = 30.0
    assert (drawn_of("a red dog", **hot) != drawn_of("a cat", **hot)).any(), "each text has samples of its own"
    features = open_model(made.id, store)[0].condition_spec.conditions(["a red dog"])["features"]
    assert isinstance(features, TextFeatures)
    assert features.mask_BT is not None
    seen = torch.nonzero(features.mask_BT[0]).flatten().tolist()
    length = features.mask_BT.shape[1]
    assert seen == (list(range(length - 3, length)) if name == "llamagen_t2i" else [0, 1, 2])  # LlamaGen pads on the left
    # Evaluated on the captions of held-out images.
    dataset, judge = judged_by(store, both.shape[1], 2, ("red", "dog"))
    config = EvaluateConfig(samples=10, shard=5, neighbours=1, components=2, metrics=["fd"])
    step = plan_evaluate("in-words", made, store.record(made).inputs["tokenizer"], dataset, judge, SampleConfig(), config, store)
    with mock.patch("tokenloom.tasks.modalities.image.judging.sampling_actor.shared_out", in_process):
        evaluation = store.record(evaluate(step, store, CPU).artifact)
    assert any(key.startswith("fd") and np.isfinite(value) for key, value in evaluation.metrics.items())
    with np.load(store.fetch(evaluation.artifact) / "samples.npz") as arrays:
        assert set(arrays["texts"].tolist()) == {"red 0", "dog 1"}
    with pytest.raises(ConfigError, match="no encoder is named that makes them"):
        sample_model(imported(name, store).id, store, None, total=1, texts=["a"], out=tmp_path / "o.npz")
    with pytest.raises(ConfigError, match=r"--text: .* is conditioned on texts"):
        sample_model(made.id, store, None, total=1, out=tmp_path / "o.npz")
    with pytest.raises(ConfigError, match="--encoder 't5': this model is not conditioned on features of texts"):
        import_checkpoint("var_vqvae", FIXTURES / "var_vqvae.safetensors", FIXTURES / "var_vqvae.json", "x", store, None, "t5")
