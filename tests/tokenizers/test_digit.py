"""Laws of DiGIT: clusters of frozen features, of the classifier or of DINO weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_tokenizers import DIM, SHAPE, SIZE, build, images, train
from torch import Tensor, nn

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.parts.nets.classifier import Classifier
from tokenloom.models.parts.nets.dino import Dino
from tokenloom.models.parts.nets.frozen import Classified, Frozen
from tokenloom.models.parts.quantizers.codebook import EMA, Codebook, Revival
from tokenloom.models.parts.quantizers.kmeans import KMeans
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers._small import Small
from tokenloom.models.zoo.tokenizers.digit.quantizer import Clusters
from tokenloom.tasks.training.parallel import launch


def clusters(start: KMeans | None = KMeans(samples=8)) -> Clusters:  # noqa: B008 - frozen
    torch.manual_seed(3)
    book = Codebook.Config(codes=12, dim=DIM, update=EMA(decay=0.9), start=start, revival=Revival(patience=3, threshold=0.3))
    return Clusters.Config(codebook=book).build((4, 4)).double().train()


def features(step: int, rows: int = 12) -> Tensor:
    """Noise around eight centres."""
    draw = torch.Generator().manual_seed(step)
    centre = 3 * torch.randn(8, DIM, generator=torch.Generator().manual_seed(99))
    which = torch.randint(8, (rows, 4, 4), generator=draw)
    return (centre[which] + 0.1 * torch.randn(rows, 4, 4, DIM, generator=draw)).permute(0, 3, 1, 2).double()


def cluster_steps(quantizer: Clusters, shares: list[tuple[int, int]], steps: int = 15) -> None:
    """Steps over shares of a global batch of 12 rows."""
    for step in range(steps):
        for first, last in shares:
            quantizer(features(step)[first:last], Draws(0, step, steps, first, last, 12))
        quantizer.after_step(Draws(0, step, steps, shares[0][0], shares[-1][1], 12))


def worker(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    quantizer = clusters()
    cluster_steps(quantizer, [(0, 5)] if rank == 0 else [(5, 8), (8, 12)])
    save_file(quantizer.state_dict(), f"{folder}/{rank}.safetensors")


def test_centres_are_the_same_for_one_process_and_two_shares(tmp_path: Path) -> None:
    """Two real processes, one of them in micro-batches, end with the same bits, and with those of one process but for the order of sums."""
    launch(2, worker, str(tmp_path))
    alone = clusters()
    cluster_steps(alone, [(0, 12)])
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for key, value in alone.state_dict().items():
        assert torch.equal(states[0][key], states[1][key]), key
        torch.testing.assert_close(states[0][key], value, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("start", [KMeans(samples=8), None])
def test_clusters_find_the_groups_of_the_data(start: KMeans | None) -> None:
    quantizer = clusters(start)
    cluster_steps(quantizer, [(0, 12)], 40)
    z = features(1000)
    found = quantizer.eval()(z)
    assert float((found.z - z).square().mean()) < 3 * 0.1**2
    assert torch.equal(quantizer.lookup(quantizer.encode(z)), found.z)
    assert not found.losses
    assert not found.z.requires_grad


def test_digit_trains_its_decoder_alone() -> None:
    model = build("digit")
    assert model.config.needs == ("features",)
    torch.manual_seed(7)
    classifier = Classifier.of(SHAPE)
    model.adopt(features=classifier)
    frozen = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    assert all(torch.equal(v, frozen[f"network.trunk.{k}"]) for k, v in classifier.trunk.state_dict().items())
    train(model, 5)
    assert all(torch.equal(v, frozen[k]) for k, v in model.encoder.state_dict().items())
    assert {n.split(".")[0] for n, _ in model.phase_parameters("main")} == {"decoder"}
    torch.testing.assert_close(model.latents(images()), classifier.grid(images()))
    with pytest.raises(ConfigError, match="features"):
        model.adopt()
    with pytest.raises(ConfigError, match="features"):
        ModelSpec("tokenizer", "digit", {"dim": 16}, {}, {"signal": signals.image(SIZE, 1).to_dict()}).build()


def test_features_of_large_images_are_those_of_the_classifier() -> None:
    net = Frozen(source=Classified(shape=SHAPE), geometry=Small(channels=8, multipliers=(1, 1, 1), patch=2).net())
    assert net.grid((128, 128)) == (16, 16)
    assert net.encoder((128, 128), 1, 16)(torch.zeros(1, 1, 128, 128)).shape == (1, 16, 16, 16)
    with pytest.raises(ConfigError, match="decoder starts from"):
        Frozen(source=Classified(shape=SHAPE), geometry=Small(channels=8, multipliers=(1,), patch=2).net()).grid((128, 128))
    with pytest.raises(ConfigError, match="dim=64"):
        net.encoder((128, 128), 1, 64)


class PlainViT(nn.Module):
    """The published forward pass in its plainest form, on a dict of released names."""

    def __init__(self, state: dict[str, Tensor], heads: int, registers: int) -> None:
        super().__init__()
        self.state, self.heads, self.registers = state, heads, registers

    def forward(self, image_B3HW: Tensor) -> Tensor:
        s = self.state
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        patch = s["patch_embed.proj.weight"].shape[-1]
        x = F.conv2d((image_B3HW / 2 + 0.5 - mean) / std, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=patch)
        h, w = x.shape[2:]
        x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x.flatten(2).mT], 1) + s["pos_embed"]
        x = torch.cat([x[:, :1], s["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
        for i in range(2):
            p, d = f"blocks.{i}.", x.shape[-1]
            a = F.linear(
                F.layer_norm(x, (d,), s[p + "norm1.weight"], s[p + "norm1.bias"], 1e-6), s[p + "attn.qkv.weight"], s[p + "attn.qkv.bias"]
            )
            q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in a.chunk(3, dim=2))
            o = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + s[p + "ls1.gamma"] * F.linear(o, s[p + "attn.proj.weight"], s[p + "attn.proj.bias"])
            m = F.layer_norm(x, (d,), s[p + "norm2.weight"], s[p + "norm2.bias"], 1e-6)
            m = F.linear(
                F.gelu(F.linear(m, s[p + "mlp.fc1.weight"], s[p + "mlp.fc1.bias"])), s[p + "mlp.fc2.weight"], s[p + "mlp.fc2.bias"]
            )
            x = x + s[p + "ls2.gamma"] * m
        x = F.layer_norm(x, (d,), s["norm.weight"], s["norm.bias"], 1e-6)
        return x[:, 1 + self.registers :].mT.unflatten(2, (h, w))


def dino_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random weights under the released names, and the network's shape."""
    d, draw = 12, torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, d), "pos_embed": (1, 17, d), "register_tokens": (1, 2, d), "mask_token": (1, d)}
    shapes |= {"patch_embed.proj.weight": (d, 3, 4, 4), "patch_embed.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,)}
    for i in range(2):
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, (rows, columns) in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": (rows, columns), f"blocks.{i}.{name}.bias": (rows,)}
        shapes |= {
            f"blocks.{i}.{name}": (d,) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma")
        }
    state = {name: 0.5 * torch.randn(*shape, generator=draw) for name, shape in shapes.items()}
    save_file(state, path)
    return state, {"width": d, "depth": 2, "heads": 3, "patch": 4, "grid_trained": 4, "registers": 2}


def test_dino_features_are_those_of_the_published_network(tmp_path: Path) -> None:
    path = tmp_path / "dino.safetensors"
    state, shape = dino_file(path)
    network = Dino(weights=str(path), **shape).build(1, 12).eval()
    grey = images(2, 3)
    with torch.no_grad():
        torch.testing.assert_close(network(grey), PlainViT(state, 3, 2)(grey.expand(-1, 3, -1, -1)), atol=2e-5, rtol=1e-5)
        assert network(F.interpolate(grey, 24)).shape == (2, 12, 6, 6), "positions are resized"
        assert Dino(weights=str(path), side=16, **shape).build(3, 12)(torch.zeros(1, 3, 40, 40)).shape == (1, 12, 4, 4)


def test_dino_tokenizer_keeps_its_weights_and_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "dino.safetensors"
    _, shape = dino_file(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    changes = {f"net.source.{k}": v for k, v in shape.items() if k != "width"} | {"net.source.sha256": digest}
    args = {"codes": 8, "dim": 12, "dino": str(path), "channels": 8, "last": 1}
    spec = ModelSpec("tokenizer", "digit", args, changes, {"signal": signals.image(SIZE, 1).to_dict()})
    torch.manual_seed(0)
    model = cast(Autoencoder, spec.build())
    assert model.config.needs == ()
    train(model, 3)
    before, state = model.encode(images()).ids, model.state_dict()
    path.rename(tmp_path / "moved")
    again = cast(Autoencoder, spec.build())
    with pytest.raises(ConfigError, match="no such file"):
        again.encode(images())
    again.load_state_dict(state)
    assert torch.equal(again.eval().encode(images()).ids, before)
    path.write_bytes((tmp_path / "moved").read_bytes() + b" ")
    with pytest.raises(ConfigError, match="SHA-256"):
        spec.build()
    save_file({"cls_token": torch.zeros(1, 1, 12)}, path)
    with pytest.raises(ConfigError, match="not a network of this shape"):
        Dino(weights=str(path), **shape).build(1, 12)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Clusters.Config(codebook=Codebook.Config(codes=4, dim=4)), "averages"),
        (lambda: Dino(weights=""), "weights"),
        (lambda: Dino(weights="x", heads=5), "heads=5"),
        (lambda: Dino(weights="x").grid((32, 32)), "side=32x32"),
    ],
)
def test_impossible_features_name_the_field(make: Any, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        make()


def teacher_file(folder: Path, width: int, depth: int, mlp: str = "gelu", registers: int = 0) -> str:
    """Random weights of a DINO of heads 64 wide."""
    shape = {"width": width, "depth": depth, "heads": width // 64, "patch": 4, "grid_trained": 4, "registers": registers, "mlp": mlp}
    torch.manual_seed(0)
    network = Dino(weights="nowhere", **shape).build(3, width)  # type: ignore[arg-type]
    path = folder / "dino.safetensors"
    save_file({name: torch.randn_like(tensor) * 0.1 for name, tensor in network.state_dict().items()}, str(path))
    return str(path)


@pytest.mark.parametrize(("width", "mlp", "registers"), [(128, "gelu", 4), (192, "swiglu", 0)])
def test_the_shape_of_a_teacher_is_read_from_its_file(tmp_path: Path, width: int, mlp: str, registers: int) -> None:
    path = teacher_file(tmp_path, width, 4, mlp, registers)
    found = Dino.of_file(path, last=3)
    assert (found.width, found.depth, found.heads, found.patch, found.grid_trained) == (width, 4, width // 64, 4, 4)
    assert (found.registers, found.mlp, found.last, found.branches) == (registers, mlp, 3, "scaled")
    network = found.build(3, width).eval()
    x = images(2, 16)
    with torch.no_grad():
        slots = network.taps(x, (2,))[0]  # the third last of four blocks is the second
        expected = network.norm(slots)[:, 1 + registers :].transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(network(x), expected)
        assert not torch.allclose(Dino.of_file(path).build(3, width)(x), expected)


def test_digit_takes_the_third_last_block_of_any_teacher(tmp_path: Path) -> None:
    from tokenloom.models.core.registry import get

    made = get("digit").config({"dino": teacher_file(tmp_path, 128, 4), "multipliers": [1], "patch": 4})
    assert (made.latent, made.net.source.last, made.net.source.heads) == (128, 3, 2)  # type: ignore[attr-defined]
    large = get("digit").config({"dino": "not here yet", "dim": 1024}).net.source  # type: ignore[attr-defined]
    assert (large.width, large.heads, large.depth, large.mlp) == (1024, 16, 24, "gelu")
    assert get("gigatok").config({"dino": teacher_file(tmp_path, 192, 2)}).semantic.teacher.width == 192  # type: ignore[attr-defined]
    (tmp_path / "dino.safetensors").unlink()
    save_file({"other": torch.zeros(1)}, str(tmp_path / "dino.safetensors"))
    with pytest.raises(ConfigError, match=r"not a vision transformer of DINO, 'pos_embed' is missing"):
        get("digit").config({"dino": str(tmp_path / "dino.safetensors")})


def test_the_classifier_is_called_a_toy() -> None:
    from tokenloom.models.core.registry import get

    assert "toy classifier" in get("digit").axes["net"]
