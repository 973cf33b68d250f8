"""Drafts on a tree: samples are those of decoding one by one, seed for seed; what was run on trial leaves no trace; k-SEQ keeps its law."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from enumerable import LARGER, made, pair

from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.diffuspec import DiffuSpec
from tokenloom.models.sampling.decoders.opt_tree import OptTree
from tokenloom.models.sampling.decoders.spectr import k_seq
from tokenloom.models.sampling.decoders.tree import STree
from tokenloom.models.sampling.decoders.trigram import ADED, Trigrams
from tokenloom.models.sampling.sampler import Constant, Sampler
from tokenloom.models.sampling.tree import Path, TreeSession

RECIPES = ("raster", "aim", "aaren", "vir", "rar", "heptapod", "sigma_gpt")
TREES: dict[str, Decoder] = {"stree": STree(widths=(3, 2, 1)), "opt_tree": OptTree(nodes=8, depth=4, width=4, gain=0.0)}
GUIDED = Sampler(guidance=Constant(value=0.5), temperature=Constant(value=0.8), top_k=6)
SHORT = {("aim", "stree"), ("raster", "opt_tree")}


@pytest.mark.parametrize(
    ("name", "decoder"),
    [pytest.param(name, d, marks=() if (name, d) in SHORT else pytest.mark.long) for name in RECIPES for d in TREES],
)
def test_samples_are_those_of_one_by_one_decoding(name: str, decoder: str) -> None:
    rows, model = 6, pair(name, layout=LARGER, scale=0.1)
    labels, draws = Labels(torch.arange(rows) % 2), SampleDraws.of(3, 0, rows)
    for sampler in (GUIDED, replace(GUIDED, temperature=Constant(value=0.0))):
        plain = model.decode(labels, sampler, draws)[0].ids
        ids, trace = model.decode(labels, replace(sampler, decoder=TREES[decoder]), draws)
        # Another kernel may round a number across the border of two codes, once in many thousand tokens.
        assert int((ids.ids != plain).any(1).sum()) <= 1
        assert trace.tokens == pytest.approx(LARGER.length)
    model.use_draft_model(model)  # greedy, and the draft model knows: all levels hold
    trace = model.decode(labels, replace(sampler, decoder=TREES[decoder]), draws)[1]
    levels = TREES[decoder].levels(model)  # type: ignore[attr-defined]
    assert trace.calls["net"] <= 2 + -(-(LARGER.length - 1) // (levels + 1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["raster", "aim", *(pytest.param(each, marks=pytest.mark.long) for each in ("aaren", "vir"))])
def test_a_tree_equals_its_paths_and_leaves_no_trace(name: str) -> None:
    """A node is given what teacher forcing gives it after its ancestors; after a commit the caches are those of the path alone."""
    model, rows, length = made(name, scale=0.1, layout=LARGER), 3, LARGER.length
    draw = torch.Generator().manual_seed(0)
    labels, sampler = Labels(torch.arange(rows) % 2), Sampler(guidance=Constant(value=0.5))
    session = TreeSession(model, labels, sampler, SampleDraws.of(0, 0, rows), nodes=8)
    plan, head = session.plan, cast(Any, model.head)
    ids = torch.randint(8, (rows, length), generator=draw)
    session.begin(ids[:, :1])
    first = torch.tensor([[-1, 0, 0, 1, 1]]).expand(rows, -1)  # node 0 is the root
    second = torch.tensor([[2, 3, 6, 3]]).expand(rows, -1)
    for _ in range(3):
        done = int(session.done_B[0])
        node = torch.cat([ids[:, done - 1 : done], torch.randint(8, (rows, 8), generator=draw)], 1)
        p = torch.cat([session.grow(node[:, :5], first), session.grow(node[:, 5:], second)], 1)
        parents = torch.cat([first, second], 1)[0].tolist()
        for i in range(9):
            path = [i]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            whole = ids.clone()
            whole[:, done - 1 : done - 1 + len(path)] = node[:, path]
            h, null = (model(whole, each, plan) for each in (labels, model.condition.null(labels)))
            taught = (1.5 * head.logits(h) - 0.5 * head.logits(null)).softmax(-1)
            torch.testing.assert_close(p[:, i], taught[:, done - 1 + len(path)], atol=1e-5, rtol=1e-4)
        # Rows go on from different nodes: 3, 6 and 7 tokens of the path are 2, 2 and 3 nodes; the next token is another one.
        held = torch.tensor([[1, 3, 0], [1, 3, 6], [1, 3, 6]])
        hold_B = torch.tensor([2, 3, 3])
        token = torch.cat([node.gather(1, held), ids[:, :1]], 1).scatter(1, hold_B[:, None], ids[:, 5:6])
        session.commit(Path(held, torch.full_like(hold_B, 2), token))
        ids[:, done : done + 2], ids[:, done + 2] = token[:, :2], token[:, 2]


@pytest.mark.parametrize("decoder", [ADED(nodes=6, depth=3), DiffuSpec(window=4, candidates=4, beam=2)], ids=lambda d: d.name)
def test_drafts_without_a_causal_model_leave_samples_as_they_are(decoder: Decoder) -> None:
    rows, model = 6, made("raster", layout=LARGER, scale=0.1)
    model.use_draft_model(made("maskgit", layout=LARGER, scale=0.1))
    labels, draws = Labels(torch.arange(rows) % 2), SampleDraws.of(3, 0, rows)
    for sampler in (GUIDED, replace(GUIDED, temperature=Constant(value=0.0))):
        ids, trace = model.decode(labels, replace(sampler, decoder=decoder), draws)
        assert int((ids.ids != model.decode(labels, sampler, draws)[0].ids).any(1).sum()) <= 1
    assert trace.tokens == pytest.approx(LARGER.length)


def test_a_table_of_trigrams_learns_what_the_net_says() -> None:
    """Greedy and from one class, rows go the same way: what one call has shown, the next ones draft."""
    model, decoder = made("raster", layout=LARGER, scale=0.1), ADED(nodes=6, depth=3)
    sampler = replace(GUIDED, temperature=Constant(value=0.0), decoder=decoder)
    session = TreeSession(model, Labels(torch.zeros(1, dtype=torch.int64)), sampler, SampleDraws.of(0, 0, 1), nodes=6)
    session.begin()
    table = Trigrams(decoder, session)
    assert bool((table.tree(session)[0] == -1).all())
    p = torch.tensor([[[0.0, 0.7, 0.0, 0.3, 0.0, 0.0, 0.0, 0.0]]]).expand(1, 7, -1)
    nothing = torch.zeros(1, 4, dtype=torch.int64)
    table.learn(session, p, Path(nothing[:, :3], nothing[:, 0], nothing))
    token, parent = table.tree(session)
    assert sorted(token[0, :2].tolist()) == [1, 3]
    assert parent[0, :2].tolist() == [0, 0]
    assert bool((token[0, 2:] == -1).all()), "nothing is known of what follows them"


def test_other_slots_and_nets_refuse_trees() -> None:
    model = made("randar", layout=LARGER)
    model.use_draft_model(made("raster", layout=LARGER))
    with pytest.raises(ConfigError, match=r"^sample\.decoder=stree: .*(slots a token|one position after another)"):
        model.check_sampler(replace(model.sampler, decoder=STree()))
    with pytest.raises(ConfigError, match=r"^sample\.decoder=opt_tree: no draft model"):
        made("raster").check_sampler(Sampler(decoder=OptTree()))
    with pytest.raises(ConfigError, match="256 nodes"):
        STree(widths=(8, 8, 8))


# --- optimal transport ---------------------------------------------------------------------------------------------

P, Q = torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7])


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_seq_accepts_and_draws_as_the_theory_says(k: int) -> None:
    """Two codes: drafts from P, the net says Q.  All 2^k drafts are listed, so that nothing is drawn."""
    drafts = torch.cartesian_prod(*[torch.arange(2)] * k).view(-1, k)
    rows = len(drafts)
    chance = P[drafts].prod(1).double()
    out, accepted = torch.zeros(2, dtype=torch.float64), 0.0
    p, q = P.expand(rows, -1), Q.expand(rows, -1)
    among = torch.ones(rows, k, dtype=torch.bool)
    rest = k_seq(q, p, drafts, among, torch.full((rows, k), 1.0))[1]
    rest = rest / rest.sum(1, keepdim=True)
    alone = _chances(k)
    for row in range(rows):
        left = 1.0
        for token in drafts[row].tolist():
            out[token] += chance[row] * left * alone[token]
            accepted += float(chance[row]) * left * alone[token]
            left *= 1 - alone[token]
        out += chance[row] * left * rest[row]
    torch.testing.assert_close(out, Q.double(), atol=2e-3, rtol=0)
    if k == 1:
        assert accepted == pytest.approx(float(torch.minimum(P, Q).sum()), abs=2e-3)  # one less the total variation
    else:
        assert accepted > float(torch.minimum(P, Q).sum())


def _chances(k: int) -> list[float]:
    """With what probability one draft of each code holds, found by bisection of the number that decides."""
    found = []
    for token in range(2):
        low, high = 0.0, 1.0
        for _ in range(30):
            u = torch.full((1, k), (low + high) / 2)
            holds = bool(k_seq(Q[None], P[None], torch.full((1, k), token), torch.ones(1, k, dtype=torch.bool), u)[0] >= 0)
            low, high = ((low + high) / 2, high) if holds else (low, (low + high) / 2)
        found.append(high)
    return found
