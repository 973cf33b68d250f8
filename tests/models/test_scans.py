"""Forms of sequence mixers: scans, selective state spaces, retention and attention by scan, each equal in all its cuts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenloom.models.parts.nets import mamba
from tokenloom.models.parts.scan import associative_scan, linear_scan
from tokenloom.models.zoo.generators.aaren import net as scan_attention
from tokenloom.models.zoo.generators.vir import net as retention


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 16, 33])
def test_scan_of_an_operation_that_does_not_commute(length: int) -> None:
    a, b = normal(2, length, 3), normal(2, length, 3, seed=1)
    found = associative_scan(lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1]), (a, b), dim=1)
    h, product = torch.zeros(2, 3, dtype=a.dtype), torch.ones(2, 3, dtype=a.dtype)
    for t in range(length):
        h, product = a[:, t] * h + b[:, t], a[:, t] * product
        torch.testing.assert_close(found[1][:, t], h)
        torch.testing.assert_close(found[0][:, t], product)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_linear_scan_has_the_right_gradient(length: int) -> None:
    decay, drive, start = (t.requires_grad_() for t in (normal(2, length, 2).sigmoid(), normal(2, length, 2, seed=1), normal(2, 2, seed=2)))
    assert torch.autograd.gradcheck(linear_scan, (decay, drive, start))


def test_linear_scan_is_safe_where_decays_underflow() -> None:
    decay = torch.full((1, 4096, 2), 1e-30)
    decay[:, ::7] = 0
    decay[..., 1] = 1
    decay.requires_grad_()
    states = linear_scan(decay, torch.ones(1, 4096, 2))
    states.sum().backward()
    assert decay.grad is not None
    assert bool(decay.grad.isfinite().all())
    assert states[0, -1].tolist() == [1, 4096]


def coefficients(slots: int, inner: int = 6, states: int = 4) -> tuple[Tensor, mamba.Coefficients]:
    u, step, b, c = (normal(2, slots, n, seed=s) for s, n in enumerate((inner, inner, states, states)))
    rate = -normal(inner, states, seed=5).exp()
    return u, mamba.Coefficients(step, normal(inner, seed=6), rate, b, c, normal(inner, seed=7))


def by_hand(u: Tensor, by: mamba.Coefficients) -> Tensor:
    """Equations 2a, 2b of arXiv:2312.00752, one number after another."""
    rows, slots, inner = u.shape
    y = torch.zeros_like(u)
    for r in range(rows):
        for e in range(inner):
            h = torch.zeros(by.rate_EN.shape[1], dtype=u.dtype)
            for t in range(slots):
                delta = math.log1p(math.exp(float(by.step_BSE[r, t, e] + by.bias_E[e])))
                h = torch.exp(delta * by.rate_EN[e]) * h + delta * by.b_BSN[r, t] * u[r, t, e]
                y[r, t, e] = by.c_BSN[r, t] @ h + by.skip_E[e] * u[r, t, e]
    return y


def cut(by: mamba.Coefficients, part: slice) -> mamba.Coefficients:
    return replace(by, step_BSE=by.step_BSE[:, part], b_BSN=by.b_BSN[:, part], c_BSN=by.c_BSN[:, part])


def test_selective_scan_is_the_paper_s_recurrence_in_every_cut() -> None:
    u, by = coefficients(11)
    whole, last = mamba.selective_scan(u, by)
    torch.testing.assert_close(whole, by_hand(u, by))
    for cuts in ([1] * 11, [4, 1, 6], [10, 1]):
        h, parts, start = torch.zeros_like(last), [], 0
        for n in cuts:
            y, h = mamba.selective_scan(u[:, start : start + n], cut(by, slice(start, start + n)), h)
            parts.append(y)
            start += n
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        torch.testing.assert_close(h, last)


def kernel_by_hand(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, delta_softplus: bool
) -> Tensor:
    """What ``mamba_ssm``'s ``selective_scan_fn`` documents: u, delta (B, D, L), A (D, N), B and C (B, N, L), D and bias (D,)."""
    assert delta_softplus
    assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
    step = F.softplus(delta + delta_bias[:, None])
    h, y = torch.zeros(len(u), *A.shape), []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step * u)[:, :, t, None] * B[:, None, :, t]
        y.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(y, 2)


def test_the_fused_kernel_is_given_what_it_takes() -> None:
    u, by = coefficients(9)
    u, by = u.float(), mamba.Coefficients(*(getattr(by, name).float() for name in by.__dataclass_fields__))
    torch.testing.assert_close(mamba.fused(kernel_by_hand, u, by), mamba.selective_scan(u, by)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_the_fused_kernel_equals_the_scan() -> None:
    kernel = pytest.importorskip("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    u, by = coefficients(33)
    u, by = u.float().cuda(), mamba.Coefficients(*(getattr(by, name).float().cuda() for name in by.__dataclass_fields__))
    torch.testing.assert_close(mamba.fused(kernel, u, by), mamba.selective_scan(u, by)[0], atol=1e-4, rtol=1e-4)


def test_three_forms_of_retention_are_equal() -> None:
    q, k, v = (normal(2, 3, 13, 4, seed=s) for s in range(3))
    log_decay = torch.tensor([-0.03, -0.4, -3.0], dtype=torch.float64)
    whole = retention.parallel(q, k, v, log_decay)
    n, m = 9, 4
    expected = sum(math.exp(-0.4 * (n - j)) * float(q[1, 1, n] @ k[1, 1, j]) * v[1, 1, j] for j in range(n + 1))
    torch.testing.assert_close(whole[1, 1, n], expected)
    stepped, (*_, last) = retention.recurrent(q, k, v, log_decay, torch.zeros(2, 3, 4, 4, dtype=q.dtype))
    torch.testing.assert_close(stepped, whole)
    for chunk in (1, 4, 13, 50):
        chunked, end = retention.chunkwise(q, k, v, log_decay, chunk)
        torch.testing.assert_close(chunked, whole)
        torch.testing.assert_close(end, last)
    middle = retention.recurrent(q[:, :, :m], k[:, :, :m], v[:, :, :m], log_decay, torch.zeros_like(last))[1][-1]
    rest, end = retention.chunkwise(q[:, :, m:], k[:, :, m:], v[:, :, m:], log_decay, 3, middle)
    torch.testing.assert_close(rest, whole[:, :, m:])
    torch.testing.assert_close(end, last)


def masked_softmax(score: Tensor, value: Tensor) -> Tensor:
    slots = score.shape[2]
    weight = score.transpose(2, 3).expand(-1, -1, slots, -1).masked_fill(~torch.ones(slots, slots).tril().bool(), -torch.inf).softmax(-1)
    return weight @ value


def test_attention_by_scan_is_softmax_over_every_prefix() -> None:
    score, value = (3 * normal(2, 3, 11, 1)).requires_grad_(), normal(2, 3, 11, 4, seed=1).requires_grad_()
    with torch.no_grad():
        score[0, 0, 3:6] = 2.5  # equal maxima
    found, expected = scan_attention.prefix_attention(score, value), masked_softmax(score, value)
    torch.testing.assert_close(found, expected)
    weight = normal(2, 3, 11, 4, seed=2)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (score, value)), torch.autograd.grad((expected * weight).sum(), (score, value))
    ):
        torch.testing.assert_close(a, b)
    nothing = (torch.full((2, 3, 1), -math.inf).double(), torch.zeros(2, 3, 1).double(), torch.zeros(2, 3, 4).double())
    first, (*_, state) = scan_attention.stream(score[:, :, :4], value[:, :, :4], nothing)
    second, _ = scan_attention.stream(score[:, :, 4:], value[:, :, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 2), expected)


def test_attention_by_scan_survives_extreme_scores() -> None:
    score = torch.tensor([-1e4, 1e4, -1e4, 0.0, 9e3]).view(1, 1, 5, 1)
    value = torch.arange(5.0).view(1, 1, 5, 1)
    assert scan_attention.prefix_attention(score, value).flatten().tolist() == [0, 1, 1, 1, 1]
