"""TiTok in two stages: who is trained when, what rests, what the base is needed for, how a run goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.settings import OptimizerSettings, TrainSettings
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.models.zoo.tokenizers.titok.module import TwoStage, code_vectors
from tokenloom.tasks.training.train_state import TrainState

ROWS, SIZE, STEPS = 8, 16, 10
BASE = ModelSpec("tokenizer", "maskgit_vqgan", dict(registry.get("maskgit_vqgan").tiny), {}, {"signal": signals.image(SIZE, 1).to_dict()})


def base(seed: int = 7) -> Autoencoder:
    torch.manual_seed(seed)
    model = BASE.build()
    assert isinstance(model, Autoencoder)
    return model


def spec(**args: Any) -> ModelSpec:
    tiny = dict(registry.get("titok").tiny) | {"stage2": 0.5} | args
    return ModelSpec("tokenizer", "titok", tiny, {}, {"signal": signals.image(SIZE, 1).to_dict(), "tokenizer": BASE.to_dict()})


def titok(seed: int = 0, adopt: bool = True, **args: Any) -> TwoStage:
    torch.manual_seed(seed)
    model = spec(**args).build()
    assert isinstance(model, TwoStage)
    if adopt:
        model.adopt(tokenizer=base())
    return model.train()


def images(rows: int = ROWS, seed: int = 0) -> Tensor:
    coarse = torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def state_of(model: TwoStage, **settings: Any) -> TrainState:
    return TrainState(model, TrainSettings(steps=STEPS, optimizer=OptimizerSettings(lr=1e-2, weight_decay=0.5), **settings))


def train(state: TrainState, numbers: range, micro: int = ROWS) -> None:
    """Steps as the loop takes them: flat optimizers, weight decay, micro-batches."""
    model, image = state.model, images()
    for step in numbers:
        for phase in state.phases:
            phase.clear()
            with state.only(phase):
                for first in range(0, ROWS, micro):
                    last = min(first + micro, ROWS)
                    draws = Draws(0, step, STEPS, first, last, ROWS, stream=phase.phase)
                    found = model.losses(Batch(image[first:last].to(next(model.parameters()))), phase.phase, draws)
                    (found["loss"] * ((last - first) / ROWS)).backward()
            phase.clip()
            phase.step(step, STEPS)
        model.after_step(Draws.whole(0, step, ROWS, STEPS))
        state.step = step + 1


def moved(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


FIRST = ("encoder.", "quantizer.codebook.", "decoder.codes.")
SECOND = ("decoder.",)


# --- stages -------------------------------------------------------------------------------------------------------


def test_the_first_stage_leaves_the_pixels_and_the_second_the_tokens() -> None:
    """Bit for bit, with momentum and a strong weight decay; every other trained value moves."""
    model = titok()
    state = state_of(model)
    parameters = {name for name, _ in model.named_parameters()}
    start = copied(model)
    train(state, range(0, 5))
    first = moved(start, model)
    assert first
    assert all(name.startswith(FIRST) for name in first)
    assert {n for n in parameters if n.startswith(FIRST)} <= first
    middle = copied(model)
    train(state, range(5, 10))
    second = moved(middle, model)
    assert all(name.startswith(SECOND) for name in second)
    assert {n for n in parameters if n.startswith(SECOND)} == second


def test_tokens_are_settled_after_the_first_stage() -> None:
    model = titok()
    state = state_of(model)
    train(state, range(0, 5))
    before = model.eval().encode(images()).data
    model.train()
    train(state, range(5, 10))
    assert torch.equal(model.eval().encode(images()).data, before)


def state_of_again(state: TrainState) -> TrainState:
    state.model.train()
    return state


def test_an_average_of_the_weights_rests_where_they_rest() -> None:
    """The EMA of what rests from the start stays at its first value."""
    model = titok()
    state = state_of(model, ema=0.9)
    start = copied(model)
    train(state, range(0, 5))
    with state.exported():
        assert not {n for n in moved(start, model) if n.startswith("decoder.pixels")}
        assert {n for n in moved(start, model) if n.startswith("encoder.")}


def test_the_pixel_network_is_not_run_in_the_first_stage_nor_the_base_in_the_second() -> None:
    model = titok()
    ran: list[str] = []
    model.proxy.pixels.register_forward_hook(lambda *_: ran.append("pixels"))
    model._base[0].encoder.register_forward_hook(lambda *_: ran.append("base"))
    model.losses(Batch(images()), "main", Draws.whole(0, 4, ROWS, STEPS))
    assert ran == ["base"]
    ran.clear()
    model.losses(Batch(images()), "main", Draws.whole(0, 5, ROWS, STEPS))
    assert ran == ["pixels"]


def test_the_first_stage_names_the_bases_codes() -> None:
    model = titok()
    torch.manual_seed(1)
    nn.init.normal_(model.proxy.codes.out.weight, std=1.0)
    parts = model.losses(Batch(images()), "main", Draws.whole(0, 0, ROWS, STEPS))
    ids = base().eval().encode(images()).ids
    model.quantizer.train(False)
    with torch.no_grad():
        logits = model.proxy.codes(model.quantizer(model.latents(images())).z).flatten(2)
    torch.testing.assert_close(parts["proxy"], nn.functional.cross_entropy(logits, ids))
    assert float(parts["proxy_accuracy"]) == pytest.approx(float((logits.argmax(1) == ids).float().mean()))
    assert parts["loss"].requires_grad


def test_both_stages_learn_one_batch() -> None:
    """Three images, each twice, until hardly a code is missed: the means of ten steps lie far from what is asked."""
    model, batch = titok(tokens=8, width=64, heads=4, stage2=0.25), Batch(torch.cat([images(3)] * 2))
    assert batch.signal is not None
    history = list(zoo.optimize(model, batch, 130))
    first, second = history[:98], history[98:]

    def end(rows: list[dict[str, float]], name: str) -> float:
        return sum(row[f"main/{name}"] for row in rows[-10:]) / 10

    assert len(base().eval().encode(batch.signal).ids.unique()) > 2  # codes worth naming
    assert end(first, "proxy") < 0.3 * first[0]["main/proxy"]
    assert end(first, "proxy_accuracy") > 0.8 > first[0]["main/proxy_accuracy"]
    assert end(second, "mse") < 0.6 * second[0]["main/mse"]


def test_an_adversarial_phase_belongs_to_the_second_stage() -> None:
    model = titok(adversarial=0.5)
    assert model.phases == ("autoencoder", "discriminator")
    state = state_of(model)
    start = copied(model)
    train(state, range(0, 5))
    assert not {n for n in moved(start, model) if n.startswith("adversarial.")}
    train(state, range(5, 10))
    assert {n for n, _ in model.phase_parameters("discriminator")} <= moved(start, model)


def test_micro_batches_change_nothing() -> None:
    models = []
    for micro in (ROWS, 3):
        model = titok().double()
        train(state_of(model), range(0, STEPS), micro)
        models.append(model.state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, atol=1e-8, rtol=1e-8, msg=name)


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(stop: int) -> None:
    """In either stage and between them; what is saved is all that counts, the base is adopted again."""
    whole = state_of(titok())
    train(whole, range(0, STEPS))
    broken = state_of(titok())
    train(broken, range(0, stop))
    saved = {name: value.clone() for name, value in broken.tensors().items()}
    again = state_of(titok(seed=5))
    again.restore(saved, stop)
    train(again, range(stop, STEPS))
    assert not moved(copied(whole.model), again.model)


# --- the base -----------------------------------------------------------------------------------------------------


def test_the_pixel_half_starts_as_the_bases() -> None:
    model, stands = titok(), base()
    assert torch.equal(model.proxy.codebook, stands.quantizer.codebook.weight)
    z = torch.randn(2, *stands.latents(images(2)).shape[1:], generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.proxy.pixels(z), stands.pixels(z))
    assert not any(n.startswith("_base") for n in model.state_dict())


def test_sure_logits_give_the_bases_own_picture() -> None:
    """Soft codes are a mean of code vectors: with one code certain at each place the pixels are the base's for these codes."""
    model, stands = titok().eval(), base().eval()
    tokens = stands.encode(images())
    logits = 200.0 * nn.functional.one_hot(tokens.ids, tokens.layout.vocabulary).float()
    model.proxy.codes.forward = lambda z: logits.transpose(1, 2).unflatten(2, tokens.layout.grids[0])  # type: ignore[method-assign]
    with torch.no_grad():
        picture = model.pixels(torch.zeros(ROWS, 4, 1, 6)).clamp(-1, 1)
    torch.testing.assert_close(picture, stands.decode(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", ["maskgit_vqgan", "vq"])
def test_code_vectors_are_what_the_base_looks_up(recipe: str) -> None:
    """Also of a codebook whose codes are no multiple of the tokens of an image, and of unit vectors."""
    torch.manual_seed(0)
    args = dict(registry.get(recipe).tiny) | {"codes": 21}
    model = ModelSpec("tokenizer", recipe, args, {}, {"signal": signals.image(SIZE, 1).to_dict()}).build()
    assert isinstance(model, Autoencoder)
    vectors = code_vectors(model)
    ids = torch.randint(21, (3, model.layout.length), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vectors[ids].transpose(1, 2).unflatten(2, model.layout.grids[0]), model.quantizer.lookup(ids))


def test_without_a_base_only_the_first_stage_is_impossible() -> None:
    model = titok(adopt=False).eval()
    assert model.decode(model.encode(images())).shape == (ROWS, 1, SIZE, SIZE)
    model.losses(Batch(images()), "main", Draws.whole(0, 9, ROWS, STEPS))
    with pytest.raises(ConfigError, match="adopt"):
        model.losses(Batch(images()), "main", Draws.whole(0, 0, ROWS, STEPS))


def test_a_base_that_does_not_fit_is_refused() -> None:
    alone = replace(spec(), given={"signal": signals.image(SIZE, 1).to_dict()})
    with pytest.raises(ConfigError, match="given none"):
        alone.build()
    with pytest.raises(ConfigError, match=r"net\.patch=8"):
        spec(patch=8).build()
    many = ModelSpec("tokenizer", "var_vq", dict(registry.get("var_vq").tiny), {}, {"signal": signals.image(SIZE, 1).to_dict()})
    for other in (many, ModelSpec("tokenizer", "kl", dict(registry.get("kl").tiny), {}, {"signal": signals.image(SIZE, 1).to_dict()})):
        with pytest.raises(ConfigError, match=r"tokenizer|patch"):
            replace(spec(), given=spec().given | {"tokenizer": other.to_dict()}).build()
    with pytest.raises(ConfigError, match="stage2"):
        spec(stage2=1.0).build()


def test_tokens_are_a_sequence() -> None:
    layout = titok().layout
    assert (layout.grids, layout.axis, layout.vocabulary) == (((1, 6),), "sequence", 16)
