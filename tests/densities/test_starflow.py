"""Laws of causal flows over latents: inverses, log-determinants, fixed points and guidance, for the options of the released class."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, TextFeatures, Tokens
from tokenloom.models.parts.flows.causal import Reversal, mixed
from tokenloom.models.pretrained import starflow as family
from tokenloom.models.zoo.generators.starflow.module import STARFlow

MODEL: dict[str, Any] = {
    "in_channels": 2, "img_size": 4, "patch_size": 1, "channels": 48, "num_blocks": 3, "layers_per_block": [1, 0, 2], "head_dim": 24,
    "rope": True, "sos": True, "txt_size": 3, "txt_dim": 6, "cond_top_only": True, "use_softplus": True, "use_final_norm": True,
    "soft_clip": 4, "seq_order": "L2R",
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "released": {},
    "start kept": {"sos": False, "use_softplus": False, "soft_clip": 0, "use_final_norm": False, "seq_order": "R2L"},
    "no text": {"txt_size": 0, "txt_dim": 0, "cond_top_only": False, "layers_per_block": [1], "patch_size": 2, "pt_seq_len": 5},
    "gemma": {
        "use_swiglu": True, "use_bias": False, "use_qk_norm": True, "use_post_norm": True, "norm_type": "rms_norm", "num_heads": 4,
        "num_kv_heads": 2, "hf_style_rope": True, "top_block_channels": 72, "cond_top_only": False,
    },
    "video": {"temporal_causal": 2, "shallow_block_local": True, "frames": 2, "img_size": 2},
}  # fmt: skip


def info_of(**changes: Any) -> dict[str, Any]:
    frames = changes.pop("frames", 0)
    return {"config": {"model": MODEL | changes, "frames": frames}}


def model_of(**changes: Any) -> STARFlow:
    torch.manual_seed(0)
    model = family.build(info_of(**changes)).double().eval()
    for part in model.parameters():
        torch.nn.init.normal_(part, std=0.1)
    return model


def inputs_of(model: STARFlow, rows: int = 2) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x = torch.randn(rows, model.grid.length, model.layout.channels * model.config.patch**2, dtype=torch.float64)
    if model.condition is None:
        return x, None, None
    text, null = torch.randn(2, rows, model.condition.prefix, model.config.features, dtype=torch.float64)
    return x, text, null


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_flows_invert_and_fixed_points_are_the_same_inverse(name: str) -> None:
    model = model_of(**OTHERS[name])
    x, text, null = inputs_of(model)
    z = model(x, text)[0][-1]
    for how in (Reversal(), Reversal(chunk=3)):
        torch.testing.assert_close(model.inverse(z, text, None, how)[-1], x, atol=1e-10, rtol=1e-10)
    single, y = model_of(**OTHERS[name]).float(), None if text is None else text.float()
    back = single.inverse(single(x.float(), y)[0][-1], y, None, Reversal())[-1]
    torch.testing.assert_close(back, x.float(), atol=1e-5 * max(1.0, float(x.abs().max())), rtol=1e-5)
    slow, fast = (model.inverse(z, text, null, Reversal(weight=1.5, chunk=chunk))[-1] for chunk in (0, 5))
    torch.testing.assert_close(fast, slow, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_the_log_determinant_is_the_jacobians(name: str) -> None:
    model = model_of(**OTHERS[name])
    x, text, _ = inputs_of(model, rows=1)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v, text)[0][-1], x).view(x.numel(), x.numel())
    logs = sum(float(log.sum().detach()) for log in model(x, text)[1])
    assert logs == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-8)


@torch.no_grad()
def test_the_likelihood_is_that_of_the_inverse_and_tokens_go_both_ways() -> None:
    model = model_of(patch_size=2)
    x, text, _ = inputs_of(model)
    tokens = model.tokens(x, model.grid)
    assert torch.equal(model.patches(tokens, model.grid), x)
    assert torch.equal(x[0, 0].view(2, 2, 2)[1, 0], tokens[0, 4])  # the pixel below the first of the first patch
    batch = Batch(tokens=Tokens(tokens, model.layout), conditions=Conditions.of(TextFeatures(cast(Tensor, text))))
    outputs, logs, _ = model(x, text)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(outputs[-1]).sum((1, 2))
    torch.testing.assert_close(model.log_prob(batch), normal + torch.stack([log.reshape(2, -1).sum(1) for log in logs]).sum(0))


def test_guidance_of_normal_distributions_is_their_tilted_product() -> None:
    s, s_null, b, b_null, w = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 1.1, 0.4, -0.2, 1.5))
    got_s, got_b = mixed(s, s_null, b, b_null, float(w))
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    normal = torch.distributions.Normal
    tilted = (1 + w) * normal(b, s).log_prob(x) - w * normal(b_null, s_null).log_prob(x)
    found = normal(got_b, got_s).log_prob(x) - tilted
    torch.testing.assert_close(found, found[:1].expand_as(found))
    wide_s, wide_b = mixed(s_null, s, b, b_null, float(w))  # a null that is narrower counts as equally wide
    torch.testing.assert_close(wide_s, s_null)
    torch.testing.assert_close(wide_b, (1 + w) * b - w * b_null)


def test_samples_are_the_inverse_of_noise_less_its_share() -> None:
    model = model_of().float()
    text = Conditions.of(TextFeatures(torch.randn(2, 3, 6)))
    sampler = model.sampler.edited(guidance=0.0)
    still = sampler.edited(head={"inverse": {"denoise": "none"}})
    noisy, clean = (model.generate(text, s, SampleDraws.of(0, 0, 2)).data for s in (still, sampler))
    z = SampleDraws.of(0, 0, 2).normal("latent", 0, 16, 2)
    prefix = cast(TextFeatures, text["features"]).feature_BTD
    torch.testing.assert_close(model.patches(noisy, model.grid), model.inverse(z, prefix, None, Reversal())[-1].detach())
    torch.testing.assert_close(model.patches(clean, model.grid), model.denoised(model.patches(noisy, model.grid), prefix))
    assert float((clean - noisy).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope": False}, r"config\.rope=False"),
        ({"learnable_self_denoiser": True}, r"config\.learnable_self_denoiser=True"),
        ({"txt_size": 0}, r"config\.model\.cond_top_only=True: the class refuses it"),
        ({"layers_per_block": [1, 1]}, r"config\.model\.layers_per_block"),
        ({"depth": 3}, r"config\.depth=3: the family does not know"),
    ],
)
def test_what_the_class_refuses_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        family.build(info_of(**changes))
