"""A config builds the class that it is nested in; an axis says what is given."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from zoo import spec_of

from tokenloom.models.core import config
from tokenloom.models.core.registry import get
from tokenloom.models.core.signals import SignalSpec

SUPPORT = str(Path(__file__).parents[1] / "support")


class Part:
    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        size: int = 1

    def __init__(self, given: config.Config, width: int) -> None:
        self.config, self.width = given, width


class Wider(Part):
    class Config(Part.Config):
        def build(self, width: int) -> Wider:
            return self.construct(2 * width)


class Plain(Part):
    class Config(Part.Config):
        pass


class Special(Part.Config):
    """Nested nowhere, as a config that only changes defaults."""


@dataclass(frozen=True, kw_only=True)
class Lonely(config.Config):
    pass


CASES = [(Part.Config(size=3), Part, 8), (Wider.Config(), Wider, 16), (Plain.Config(), Plain, 8), (Special(), Part, 8)]


@pytest.mark.parametrize(("given", "built", "width"), CASES)
def test_a_config_builds_the_class_that_it_is_nested_in(given: Part.Config, built: type, width: int) -> None:
    made = given.build(8)
    assert type(made) is built
    assert made.config is given
    assert made.width == width


def test_a_config_that_is_nested_nowhere_says_so() -> None:
    with pytest.raises(TypeError, match=r"Lonely is nested in no class: it needs a build of its own"):
        Lonely().build()


VIT = {"patch": 4, "encoder_blocks": {"width": 32, "depth": 1, "heads": 2}, "decoder_blocks": {"width": 16, "depth": 1, "heads": 2}}
#: Field of a tokenizer's config, what a run file writes there, and the type that it becomes.
WRITTEN = [
    ("net", {"vit": VIT}, "net.vit"),
    ("net", {"net.vit": VIT}, "net.vit"),
    ("quantizer", {"fsq": {"levels": [5, 5], "bound": {"symmetric": {}}}}, "quantizer.fsq"),
    ("quantizer.codebook.update", {"learned": None}, "codebook.learned"),
    ("quantizer.codebook.update", {"ema": {"decay": 0.5}}, "codebook.ema"),
    ("quantizer.codebook.update", "learned", "codebook.learned"),
    ("quantizer.codebook.start", {"iterations": 3}, "init.kmeans"),
    ("adversarial", {"weight": 0.5, "discriminator": {"patchgan": {}}}, "loss.adversarial"),
]


@pytest.mark.parametrize(("path", "value", "tag"), WRITTEN)
def test_a_run_file_replaces_values_of_unions_and_whole_parts(path: str, value: object, tag: str) -> None:
    made: object = get("vq").config({}, {path: value})
    for name in path.split("."):
        made = getattr(made, name)
    assert isinstance(made, config.Config)
    assert made.tag == tag
    again = get("vq").config({}, {path: made.to_dict()})  # its canonical form says the same
    assert again == get("vq").config({}, {path: value})
    for name in path.split("."):
        again = getattr(again, name)
    assert again == made


def test_a_replaced_net_builds_and_is_edited_further() -> None:
    changes = {"net.encoder_blocks.depth": 2, "net": {"vit": VIT}, "latent": 32}
    made = get("vq").config({"multipliers": [1, 1]}, changes)
    model = made.build(signal=SignalSpec(shape=(16, 16), channels=1))
    assert len(model.encoder.stack.blocks) == 2
    assert model.layout.grids == ((4, 4),)


def test_fields_that_go_together_are_changed_together() -> None:
    """A latent without a convolution must have the quantizer's channels: neither change alone could be made."""
    for changes in ({"quant_kernel": 0, "latent": 2, "quantizer": {"fsq": {"levels": [5, 5]}}}, {"latent": 2, "quant_kernel": 0}):
        if "quantizer" in changes:
            assert get("vq").config({}, changes).latent == 2  # type: ignore[attr-defined]
        else:
            with pytest.raises(config.ConfigError, match=r"set\.latent=2, set\.quant_kernel=0: latent="):
                get("vq").config({}, changes)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("net", {"vitt": {}}, r"^set\.net: \{'vitt': \{\}\}: write one of .*vit.* with its fields"),
        ("net", {"vit": {"pach": 4}}, r"^set\.net\.vit: unknown field 'pach'; fields here: patch"),
        ("net", {"vit": {"patch": 4}}, r"^set\.net\.vit: missing"),
        ("quantizer.codebook.update", {"decay": 0.5}, r"update: \{'decay': 0\.5\}: write one of ema, fixed, learned with"),
        ("quantizer.codebook.update", {"ema": {"decay": 7}}, r"update\.ema: decay=7\.0: must be"),
        ("quantizer.codebook.update", "emma", r"update: 'emma' is not a valid .*names here: ema, fixed, learned"),
        ("quantizer", {"type": "net.vit", **VIT}, r"set\.quantizer\.encoder_blocks|type 'net\.vit' is not a valid Quantizer\.Config"),
        ("adversarial.weight", 0.5, r"set\.adversarial\.weight: .*None"),
    ],
)
def test_what_cannot_be_written_is_said_with_its_names(path: str, value: object, message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        get("vq").config({}, {path: value})


def test_a_condition_is_still_written_by_its_own_names() -> None:
    """Conditions have a ``names`` of their own, which says which inputs they take."""
    made = get("raster").config({"depth": 1}, {"condition": {"characters": {"length": 8}}})
    assert made.condition.length == 8  # type: ignore[attr-defined]
    with pytest.raises(config.ConfigError, match=r"set\.condition: 'letters' is not a valid"):
        get("raster").config({"depth": 1}, {"condition": "letters"})


@pytest.mark.parametrize("name", ["var", "raster", "rar", "vq", "gigatok"])
def test_a_model_without_memory_has_the_shapes_of_the_real_one(name: str) -> None:
    spec = spec_of(name)
    real, blank = ([(n, t.shape, t.dtype) for n, t in (*m.named_parameters(), *m.named_buffers())] for m in (spec.build(), spec.shaped()))
    assert blank == real
    assert all(p.is_meta for p in spec.shaped().parameters())


@pytest.mark.long
def test_a_model_without_memory_is_built_without_an_algebra_system() -> None:
    names = ("var", "raster", "rar", "maskgit")
    code = f"import sys; from zoo import spec_of; [spec_of(n).shaped() for n in {names}]; print('sympy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SUPPORT})
    assert found.stdout.strip() == "False", found.stderr
