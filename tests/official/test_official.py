"""Official checkpoints become artifacts, and artifacts become folders that load anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenloom.models import pretrained
from tokenloom.models.core.build import load_model
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Generator, Labels, Tokenizer
from tokenloom.models.pretrained import parity
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.tasks.store.artifacts import Artifact, Store
from tokenloom.tasks.store.official import classes_of, export_model, import_checkpoint, read_weights

FIXTURES = Path(__file__).parents[1] / "fixtures" / "parity"


def fixture(name: str) -> dict[str, Any]:
    info: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_text())
    return info


@pytest.fixture
def vae(store: Store) -> Artifact:
    return import_checkpoint("var_vqvae", FIXTURES / "var_vqvae.safetensors", FIXTURES / "var_vqvae.json", "vae", store).artifact


def var_settings() -> dict[str, Any]:
    """Settings of a transformer that belongs to the tokenizer fixture."""
    of_vae = fixture("var_vqvae")["config"]
    return {
        **fixture("var")["config"],
        "vocab_size": of_vae["vocab_size"],
        "Cvae": of_vae["z_channels"],
        "patch_nums": of_vae["v_patch_nums"],
    }


def official_generator(folder: Path) -> tuple[Path, Path]:
    """A checkpoint with the official names and random weights, without the tokenizer's part, and its settings."""
    family, info = pretrained.families()["var"], {"config": var_settings()}
    torch.manual_seed(3)
    model = family.build(info)
    state = family.names(info).dump(dict(model.state_dict()))
    torch.save({k: v for k, v in state.items() if not k.startswith("state_vae/")}, folder / "var.pth")
    (folder / "var.json").write_text(json.dumps(info))
    return folder / "var.pth", folder / "var.json"


def test_an_imported_tokenizer_gives_the_official_numbers(store: Store, vae: Artifact) -> None:
    tensors = load_file(str(FIXTURES / "var_vqvae.safetensors"))
    model, spec = load_model(store.fetch(vae))
    assert isinstance(model, Tokenizer)
    assert spec.recipe == "official/var_vqvae"
    tokens = model.encode(tensors["in/image"])
    assert torch.equal(tokens.ids, tensors["out/idx_BL"])
    expected = tensors["out/decoded_clamped"]
    torch.testing.assert_close(model.decode(tokens), expected, rtol=0, atol=2e-5 * max(1.0, expected.abs().max().item()))
    notes = store.record(vae).notes
    assert notes["layout"]["tokenizer"] == vae.fingerprint
    assert notes["parameters"] > 0


def test_an_import_is_done_once(store: Store, vae: Artifact) -> None:
    again = import_checkpoint("var_vqvae", FIXTURES / "var_vqvae.safetensors", FIXTURES / "var_vqvae.json", "vae", store)
    assert (again.status, again.artifact) == ("cached", vae)


def test_an_imported_generator_adopts_its_tokenizer_and_samples(store: Store, vae: Artifact, tmp_path: Path) -> None:
    weights, settings = official_generator(tmp_path)
    made = import_checkpoint("var", weights, settings, "var", store, tokenizer=vae.id).artifact
    assert store.record(made).inputs == {"tokenizer": vae}
    model, spec = load_model(store.fetch(made))
    tokenizer, _ = load_model(store.fetch(vae))
    assert isinstance(model, Generator)
    assert isinstance(tokenizer, Tokenizer)
    assert spec.given["classes"] == 10
    state, own = model.state_dict(), tokenizer.state_dict()
    assert torch.equal(state["feed.quantizer.codebook.weight"], own["quantizer.codebook.weight"])
    assert torch.equal(state["net.attention.0.qkv.weight"], read_weights(weights)["blocks.0.attn.mat_qkv.weight"])
    tokens = model.generate(Labels(torch.tensor([1, 2])), Sampler(top_k=1), SampleDraws.of(0, 0, 2))
    assert tokenizer.decode(tokens).shape == (2, 3, 24, 24)


@pytest.mark.parametrize(
    ("family", "weights", "settings", "tokenizer", "message"),
    [
        ("vra", "var_vqvae.safetensors", "var_vqvae.json", None, "unknown family 'vra'; there are: .*var_vqvae"),
        ("var", "var.safetensors", "var.json", None, "--tokenizer"),
        ("var", "var.safetensors", "var.json", "nothing", "'nothing' is not in the store"),
        ("var_vqvae", "var_vqvae.json", "var_vqvae.json", None, "not a checkpoint of plain tensors"),
        ("var_vqvae", "var_vqvae.safetensors", "var_vqvae.safetensors", None, "not readable JSON"),
        ("var_vqvae", "var_vqvae.safetensors", "llamagen_vq.json", None, r"config\.codebook_embed_dim=8: the family does not know"),
        ("llamagen_vq", "var_vqvae.safetensors", "llamagen_vq.json", None, "does not fit family 'llamagen_vq'"),
    ],
)
def test_what_cannot_be_imported(family: str, weights: str, settings: str, tokenizer: str | None, message: str, store: Store) -> None:
    with pytest.raises(ConfigError, match=message):
        import_checkpoint(family, FIXTURES / weights, FIXTURES / settings, "x", store, tokenizer)
    assert store.records() == []


def test_pickled_classes_are_not_loaded(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "path": Path("x")}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match="not a checkpoint of plain tensors"):
        read_weights(tmp_path / "odd.pth")
    torch.save({"model": {"w": torch.ones(2)}}, tmp_path / "nested.pth")
    assert torch.equal(read_weights(tmp_path / "nested.pth")["w"], torch.ones(2))
    save_file({"state/w": torch.ones(2), "in/x": torch.zeros(1)}, str(tmp_path / "fixture.safetensors"))
    assert set(read_weights(tmp_path / "fixture.safetensors")) == {"w"}
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        read_weights(tmp_path / "list.pth")


def test_an_export_loads_without_the_store(store: Store, vae: Artifact, tmp_path: Path) -> None:
    files = export_model("vae", tmp_path / "out", store)
    assert [path.name for path in files] == ["weights.safetensors", "model.json", "README.md"]
    model, _ = load_model(tmp_path / "out")
    original, _ = load_model(store.fetch(vae))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values()))
    card = (tmp_path / "out" / "README.md").read_text()
    assert vae.id in card
    assert "load_model" in card
    with pytest.raises(ConfigError, match="is not empty"):
        export_model(f"tokenizer/{vae.id}", tmp_path / "out", store)
    with pytest.raises(ConfigError, match="dataset cannot be exported"):
        export_model(f"dataset/{vae.id}", tmp_path / "other", store)
    with pytest.raises(ConfigError, match="'nothing'"):
        export_model("nothing", tmp_path / "other", store)


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("llamagen_c2i", "num_classes"),
        ("rar", "condition_num_classes"),
        ("titok_imagebert", "condition_num_classes"),
        ("halton_maskgit", "nclass"),
        ("open_magvit2_gpt", "class_num"),
        ("tokenbridge", "class_num"),
    ],
)
def test_an_import_has_the_classes_of_its_settings(family: str, setting: str) -> None:
    info = fixture(family)
    with torch.device("meta"):
        model = pretrained.families()[family].build(info)
    assert info["config"][setting] != 1000
    assert classes_of(model) == info["config"][setting]


def test_the_fixture_families_are_importable() -> None:
    assert {"var", "var_vqvae", "llamagen_vq"} <= set(pretrained.families())
    assert parity.official_state({"state/a": torch.zeros(1), "in/b": torch.zeros(1)}).keys() == {"a"}


@pytest.mark.parametrize(("name", "size"), [("titok", 32), ("var_vqvae", 24), ("mar_klvae", 24)])
def test_an_imported_tokenizer_has_the_image_size_of_its_settings(name: str, size: int, store: Store) -> None:
    family = fixture(name)["config"].get("kind", name)
    family = family if family in pretrained.families() else name
    made = import_checkpoint(family, FIXTURES / f"{name}.safetensors", FIXTURES / f"{name}.json", name.replace("_", "-"), store).artifact
    assert store.record(made).notes["spec"]["given"]["signal"]["shape"] == [size, size]
    model, _ = load_model(store.fetch(made))
    assert isinstance(model, Tokenizer)
    assert model.decode(model.encode(torch.zeros(1, 3, size, size))).shape == (1, 3, size, size)
