"""No option of an official class is passed over: each is used, said to have no effect, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.pretrained import families
from tokenloom.models.pretrained.options import Option, Options, at_most, inert, only, square, used

FIXTURES = Path(__file__).parents[1] / "fixtures"
#: Families of generators; those of tokenizers and quantizers have a test of their own (test_tokenizer_options.py).
GENERATORS = [
    *("arpg", "digit_gpt", "flexvar", "halton_maskgit", "infinity", "infinity_patchify", "llamagen_c2i", "llamagen_t2i", "nar", "npp"),
    *("open_magvit2_gpt", "par", "randar", "rar", "titok_imagebert", "titok_uvitbert", "tokenbridge", "var", "var_shared_aln"),
]
DECLARED = {name: families()[name].OPTIONS for name in GENERATORS}

#: Used options on which the config and the weights do not depend: recorded numbers do, or checks, or names of weights.
ELSEWHERE = {
    *("tf_patch_nums", "infer_patch_nums", "mask_rate", "label_smoothing", "trunk_scale", "quant_min", "quant_max", "max_pn"),
    *(
        "args",
        "gen_len",
        "block_chunks",
        "cls_token_num",
        "temp_pow",
        "temp_warmup",
        "spe_token_num",
        "ar_token_num",
        "guidance_scale_pow",
        "ddim_spacing",
    ),
}
#: Other values of options that few values fit.
EXAMPLES: dict[str, list[Any]] = {
    "patch_sizes": [[4, 1]],
    "img_size_list": [[32, 4, 1], [32, 8, 2, 1]],
    "generator_type_list": [["mar", "ar", "ar"], ["mar", "ar", "mar", "ar"]],
    "guiding_pixel_loss": [{"width": 8, "depth": 1, "num_heads": 2}],
    "num_sampling_steps": ["13", "ddim10"],
    "alpha": [1.5],
}
#: Options that fit each other only together, by family.
TOGETHER: dict[str, dict[str, Any]] = {
    "par": {"spe_token_num": 8, "ar_token_num": 9},
    "llamagen_t2i": {"text_len": 60, "cls_token_num": 60, "num_classes": 7},  # a text has no classes
    "titok_uvitbert": {"guidance_scale_pow": 2.0},
    "rar": {"guidance_scale_pow": 2.0},
    "fractalgen_ar": {"guiding_pixel": True, "num_conds": 5, "generator_type_list": ["mar", "mar", "ar"]},
    "fractalgen_guiding": {"guiding_pixel": False, "num_conds": 1, "generator_type_list": ["ar", "ar", "ar", "ar"]},
}


def fixture(name: str, folder: str = "parity") -> dict[str, Any]:
    info: dict[str, Any] = json.loads((FIXTURES / folder / f"{name}.json").read_text())
    return info


def fixtures() -> Iterator[tuple[str, str]]:
    for folder in ("parity", "parity_options"):
        for path in sorted((FIXTURES / folder).glob("*.json")):
            if path.stem in DECLARED:
                yield path.stem, folder


def settled(name: str, info: Mapping[str, Any]) -> str:
    """The config that official settings come to, and that of what the model has of its tokenizer."""
    family = families()[name]
    codec = family._Codec(info).quantizer.to_dict() if hasattr(family, "_Codec") else {}
    return json.dumps([family.config(info).to_dict(), codec])


def weights(name: str, info: Mapping[str, Any]) -> Any:
    """The tokens and every weight with its shape."""
    with torch.device("meta"):
        model = families()[name].build(info)
    return (getattr(model, "layout", None), getattr(model, "shape", None)), {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


def others(option: Option, value: Any) -> list[Any]:
    """Other values that an option may have."""
    if option.values:
        return [v for v in option.values if v != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int) and value < 0:
        return [2]
    if isinstance(value, int):
        return [2 * value, 4 * value, value + 1, value - 1, value // 2, (round(value**0.5) + 1) ** 2, 10, 3]
    if isinstance(value, float):
        return [value * 2, value / 2, value + 1.0, value + 0.05]
    if isinstance(value, list) and not any(isinstance(v, str) for v in value):
        return [[v + 1 for v in value], value[:-1], [*value, value[-1] + 1], [2 * v for v in value]] if value else []
    if value is None:
        return [1, 2]
    return ["0.25M"]


@pytest.mark.parametrize(("name", "folder"), list(fixtures()))
def test_a_key_that_nobody_knows_is_refused(name: str, folder: str) -> None:
    info = fixture(name, folder)
    with pytest.raises(ConfigError, match=r"config\.mystery=3: the family does not know"):
        families()[name].build({**info, "config": {**info["config"], "mystery": 3}})


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_what_is_refused_is_refused_by_name(name: str) -> None:
    info = fixture(name)
    for key, option in DECLARED[name].items():
        if option.effect == "only":
            with pytest.raises(ConfigError, match=rf"config\.{key}='another': only "):
                DECLARED[name].read({"config": {**info["config"], key: "another"}})


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_used_option_of_a_fixture_changes_something(name: str) -> None:
    info = fixture(name)
    plain, still = (settled(name, info), weights(name, info)), []
    for key, option in DECLARED[name].items():
        if key not in info["config"] or option.effect != "used" or key in ELSEWHERE | TOGETHER.get(name, {}).keys():
            continue
        for value in EXAMPLES.get(key, others(option, info["config"][key])):
            other = {**info, "config": {**info["config"], key: value}}
            try:
                if settled(name, other) != plain[0] or weights(name, other) != plain[1]:
                    break
            except ValueError:  # a value that does not fit the others
                continue
        else:
            still.append(key)
    assert still == []


@pytest.mark.parametrize("name", sorted(TOGETHER))
def test_options_that_fit_together_change_something(name: str) -> None:
    info = fixture(name)
    assert settled(name, {**info, "config": {**info["config"], **TOGETHER[name]}}) != settled(name, info)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"mystery": 1}, "config.mystery=1: the family does not know"),
        ({"decoder_output_dim": 16}, "config.decoder_output_dim=16: only 32"),
        ({"share_decoder_input_output_embed": True}, "config.share_decoder_input_output_embed=True: only False"),
    ],
)
def test_options_inside_options_are_read_too(args: dict[str, Any], words: str) -> None:
    info = fixture("digit_gpt")
    with pytest.raises(ConfigError, match=words):
        families()["digit_gpt"].build({"config": {**info["config"], "args": {**info["config"]["args"], **args}}})


@pytest.mark.parametrize("args", [{"decoder_learned_pos": False}, {"decoder_normalize_before": True}, {"class_conditional": False}])
def test_other_decoders_of_digit_sample_as_they_are_taught(args: dict[str, Any]) -> None:
    family, info = families()["digit_gpt"], fixture("digit_gpt")
    info["config"]["args"] |= args
    torch.manual_seed(1)
    model = family.build(info).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    names = family.names(info)
    official = names.dump(dict(model.state_dict().items()))
    assert ("decoder.layer_norm.weight" in official) == args.get("decoder_normalize_before", False)
    assert ("decoder.embed_positions.weight" in official) == args.get("decoder_learned_pos", True)
    assert len(official["decoder.embed_tokens.weight"]) == 24 + 1000 * args.get("class_conditional", True)
    labels = Labels(torch.zeros(2, dtype=torch.long))
    steps = list(model.decode_steps(labels, model.sampler, SampleDraws.of(0, 0, 2)))
    ids = torch.cat([step.data for step in steps], 1)
    assert ids.min() >= 4
    taught = model(ids, labels, model.order.plan(model.layout, None))
    torch.testing.assert_close(torch.cat([step.h_BnD for step in steps], 1), taught, atol=1e-4, rtol=1e-4)


def test_options_say_what_is_wrong() -> None:
    options = Options(a=used("it"), b=used("one of two", "x", "y"), c=only(1, why="others fail"), d=inert("of speed"), e=used(default=5))
    assert options.read({"config": {"a": 1, "b": "y", "d": 9}}) == {"a": 1, "b": "y", "d": 9, "e": 5}
    for config, words in (
        ({"b": "x"}, "config.a is missing"),
        ({"a": 1, "b": "z"}, r"config\.b='z': only 'x', 'y'"),
        ({"a": 1, "b": "x", "c": 2}, r"config\.c=2: only 1 \(others fail\)"),
        ({"a": 1, "b": "x", "f": 2}, r"config\.f=2: the family does not know .* it knows a, b, c, d, e"),
    ):
        with pytest.raises(ConfigError, match=words):
            options.read({"config": config})
    assert square("length", 49) == 7
    with pytest.raises(ConfigError, match=r"config\.length=48: no square"):
        square("length", 48)
    with pytest.raises(ConfigError, match=r"config\.steps=10: from 1 to the 9 positions"):
        at_most("steps", 10, 9)
