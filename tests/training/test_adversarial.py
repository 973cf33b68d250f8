"""An adversarial phase that starts in the middle of training: what it may not ruin, and what it costs while it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import Draws
from tokenloom.models.core.protocols import Batch
from tokenloom.models.core.settings import TrainSettings
from tokenloom.models.parts.adversarial.loss import Adversarial
from tokenloom.models.parts.adversarial.patch import PatchDiscriminator
from tokenloom.models.tokenizers.autoencoder import Autoencoder
from tokenloom.tasks.training.train_state import TrainState


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokenizer(**args: Any) -> Autoencoder:
    torch.manual_seed(0)
    base = {"channels": 8, "multipliers": [1, 1], "patch": 4, "codes": 32, "dim": 4}
    model = ModelSpec("tokenizer", "vq", base | args, {}, {"signal": signals.image(16, 1).to_dict()}).build()
    assert isinstance(model, Autoencoder)
    return model


def blobs(rows: int, seed: int) -> Tensor:
    coarse = torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, 16, mode="bilinear")


def held_out_errors(weight: float, start: int, steps: int, every: int = 25) -> list[float]:
    """Squared error on held-out images every so many steps, trained as the loop does: a clipped AdamW a phase."""
    model, rows = tokenizer(adversarial=weight, adversarial_start=start).train(), 16
    state, held, errors = TrainState(model, TrainSettings(steps=steps)), blobs(64, -1), []
    for step in range(steps):
        for phase in state.phases:
            if step < phase.begins:
                continue
            phase.clear()
            with state.only(phase):
                model.losses(Batch(blobs(rows, step)), phase.phase, Draws.whole(0, step, rows, steps, stream=phase.phase))[
                    "loss"
                ].backward()
            phase.clip()
            phase.step(step, steps)
        model.after_step(Draws.whole(0, step, rows, steps))
        if (step + 1) % every == 0:
            with torch.no_grad():
                errors.append(float((model.decode(model.encode(held)) - held).square().mean()))
    return errors


@pytest.mark.parametrize("weight", [pytest.param(0.5, marks=pytest.mark.long), 1000.0])
def test_an_adversarial_start_in_mid_training_keeps_the_reconstruction(weight: float) -> None:
    """However large the weight, the adversarial gradient stays within that of the reconstruction."""
    errors = held_out_errors(weight, start=100, steps=200)
    before, after = errors[3], errors[4:]
    assert before < 0.9 * errors[0]
    assert max(after) < 1.2 * before, errors


def test_a_weight_counts_up_to_its_ceiling() -> None:
    image = random(2, 1, 16, 16)
    found = []
    for weight in (1.0, 1000.0):
        torch.manual_seed(0)
        loss = Adversarial.Config(weight=weight, discriminator=PatchDiscriminator.Config(channels=8)).build(1, torch.Size((1,)))
        loss.ratio.fill_(2.0)
        found.append(loss.eval().generator_loss(image, image.mean(), image, 0, 2, 2))
        fake = -loss.discriminator(image).mean()
    assert float(found[0].detach()) == pytest.approx(2.0 * float(fake.detach()), rel=1e-5)
    assert torch.equal(found[0], found[1])
    with pytest.raises(ConfigError, match="ceiling"):
        Adversarial.Config(ceiling=-1.0)


def test_a_discriminator_that_is_off_costs_no_reconstruction() -> None:
    """Before its start the phase is worth zero, gives every parameter a gradient of zero, and runs no net."""
    model = tokenizer(adversarial=0.5, adversarial_start=3).train()
    ran: list[int] = []
    handles = [m.register_forward_hook(lambda *_: ran.append(1)) for m in (model.encoder, model.adversarial.discriminator)]  # type: ignore[union-attr]
    for step, runs in ((2, 0), (3, 3)):
        ran.clear()
        model.zero_grad(set_to_none=True)
        parts = model.losses(Batch(blobs(4, 0)), "discriminator", Draws.whole(0, step, 4, 10))
        parts["loss"].backward()
        assert set(parts) == {"loss", "discriminator"}
        assert len(ran) == runs
        gradients = [p.grad for _, p in model.phase_parameters("discriminator")]
        assert all(g is not None for g in gradients)
        assert any(bool(g.abs().sum() > 0) for g in gradients if g is not None) == (step >= 3)
    for handle in handles:
        handle.remove()


def test_the_ema_takes_in_the_codebook_of_averages() -> None:
    """What is saved is one moment's weights and codes, not averaged nets on the last step's codes."""
    model = tokenizer().train()
    state, book = TrainState(model, TrainSettings(steps=4, ema=0.5)), model.quantizer.codebook
    expected = book.weight.clone()
    for step in range(3):
        book.weight.copy_(torch.full_like(book.weight, float(step)))
        state.follow()
        expected = expected.lerp(book.weight, 1 - min(0.5, (1 + step) / (10 + step)))
        state.step += 1
    with state.exported():
        torch.testing.assert_close(book.weight, expected)
    assert bool((book.weight == 2).all())
    kept = {name: tensor.clone() for name, tensor in state.tensors().items()}
    other = TrainState(tokenizer().train(), TrainSettings(steps=4, ema=0.5))
    other.restore(kept, 3)
    with other.exported():
        torch.testing.assert_close(other.model.quantizer.codebook.weight, expected)  # type: ignore[union-attr]
    other.restore({name: tensor for name, tensor in kept.items() if not name.startswith("ema.buffers.")}, 3)
    with other.exported():
        assert bool((other.model.quantizer.codebook.weight == 2).all()), "an older state starts them anew"  # type: ignore[union-attr]
