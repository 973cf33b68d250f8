"""Speculative decoders are exact in distribution, and what was run on trial leaves no trace.

Distributions are compared with those of an enumerable toy: all sequences of four tokens of three codes, by the likelihood that teacher
forcing gives them (``tests/support/enumerable.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from enumerable import CODES, LARGER, LAYOUT, LENGTH, PLAIN, ROWS, SAMPLERS, drawn, exact, ignorant, made, pair, surprise

from tokenloom.models.core import registry
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.draws import SampleDraws
from tokenloom.models.core.protocols import Labels, TokenLayout, Tokens
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.orders.sizes import Count
from tokenloom.models.sampling import chain
from tokenloom.models.sampling.chain import ChainSession
from tokenloom.models.sampling.decoders import mc_jacobi
from tokenloom.models.sampling.decoders.base import Decoder
from tokenloom.models.sampling.decoders.draft import DraftModel
from tokenloom.models.sampling.decoders.jacobi import Jacobi
from tokenloom.models.sampling.decoders.mc_jacobi import CoupledJacobi
from tokenloom.models.sampling.decoders.spectr import SpecTr
from tokenloom.models.sampling.sampler import Constant, Sampler

DECODERS: dict[str, Decoder] = {"jacobi": Jacobi(window=3), "draft": DraftModel(window=2)}
#: Further ones with the same law, in the long tests; one pair each is in the short ones.
FURTHER: dict[str, Decoder] = {"mc_jacobi": CoupledJacobi(window=3), "spectr": SpecTr(drafts=3, window=2)}
#: Recipes that decode one position after another from one softmax.
CHAINS = ("aaren", "aim", "heptapod", "rar", "raster", "sigma_gpt", "vir")


#: What of the pairs is in the short tests.
SHORT = {
    ("raster", "jacobi", "guided_top_p"),
    ("aim", "jacobi", "guided_top_k"),
    ("raster", "draft", "guided_top_k"),
    ("aim", "draft", "plain"),
    ("raster", "mc_jacobi", "guided_top_p"),
    ("raster", "spectr", "guided_top_k"),
}
PAIRS = [
    pytest.param(name, decoder, sampler, marks=() if (name, decoder, sampler) in SHORT else pytest.mark.long)
    for name in CHAINS
    for decoder in (*DECODERS, *FURTHER)
    for sampler in SAMPLERS
    if name in ("raster", "aim") or sampler == "guided_top_p"
]


@pytest.mark.parametrize(("name", "decoder", "sampler"), PAIRS)
def test_samples_have_the_distribution_of_one_by_one_decoding(name: str, decoder: str, sampler: str) -> None:
    model = pair(name)
    every, p = exact(model, 1, SAMPLERS[sampler])
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert surprise(drawn(model, (DECODERS | FURTHER)[decoder], SAMPLERS[sampler]), every, p) < 1


@pytest.mark.parametrize("decoder", ["jacobi", "mc_jacobi"])
def test_a_coupling_that_forgets_the_draft_before_has_another(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a draft stays although it has become less likely, only the right marginal keeps samples exact."""
    model = pair("raster")
    every, p = exact(model, 1, PLAIN)
    monkeypatch.setattr(mc_jacobi, "acceptable", lambda now, before, token, uniform: torch.ones_like(token, dtype=torch.bool))
    far = surprise(drawn(model, (DECODERS | FURTHER)[decoder], PLAIN), every, p)
    assert far < 1 if decoder == "jacobi" else far > 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["raster", "aim"])
def test_accepting_every_draft_has_another(name: str, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair(name)
    every, p = exact(model, 1, PLAIN)
    monkeypatch.setattr(chain, "acceptable", lambda target, draft, token, uniform: torch.ones_like(token, dtype=torch.bool))
    assert surprise(drawn(model, DECODERS[decoder], PLAIN), every, p) > 3


def test_drawing_a_rejected_token_from_the_target_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pair("raster")
    every, p = exact(model, 1, PLAIN)
    monkeypatch.setattr(chain, "residual", lambda target, draft: target)
    assert surprise(drawn(model, DECODERS["jacobi"], PLAIN), every, p) > 1.5


def test_one_by_one_decoding_passes_the_same_test() -> None:
    model = pair("raster")
    every, p = exact(model, 1, SAMPLERS["guided_top_k"])
    assert surprise(drawn(model, None, SAMPLERS["guided_top_k"]), every, p) < 1


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["raster", "aim"])
def test_a_sample_alone_is_the_same_sample_in_a_batch(name: str, decoder: str) -> None:
    model, sampler = pair(name), replace(SAMPLERS["guided_top_p"], decoder=DECODERS[decoder])
    labels = torch.arange(64) % 2
    batch = model.generate(Labels(labels), sampler, SampleDraws.of(3, 0, 64)).ids
    for row in (0, 13, 63):
        alone = model.generate(Labels(labels[row : row + 1]), sampler, SampleDraws.of(3, row, row + 1)).ids
        assert torch.equal(alone[0], batch[row])


# --- what was run on trial ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", [*CHAINS, "randar"])
def test_windows_with_rollback_equal_teacher_forcing(name: str) -> None:
    model, rows, length = made(name, scale=0.1, layout=LARGER), 4, LARGER.length
    draw = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(8, (rows, length), generator=draw), Labels(torch.arange(rows) % 2)
    sizes = Count(count=length) if name == "randar" else None  # its own are larger groups
    session = ChainSession(model, labels, Sampler(guidance=Constant(value=0.5), sizes=sizes), SampleDraws.of(0, 0, rows), window=5)
    h, null = (model(ids, each, session.plan) for each in (labels, model.condition.null(labels)))
    head = cast(Any, model.head)
    taught = (1.5 * head.logits(h) - 0.5 * head.logits(null)).softmax(-1)
    true = torch.cat([ids.gather(1, session.sequence_BL), ids.new_zeros(rows, 6)], dim=1)
    torch.testing.assert_close(session.first_B1V, taught[:, :1], atol=1e-5, rtol=1e-4)
    session.begin(true[:, :1])
    start = session.mark()
    for step in range(12):
        if step == 2:  # all over again
            session.rollback(start)
        session.run(torch.randint(8, (rows, 3), generator=draw))  # drafts that do not hold
        session.rollback()
        window = true.gather(1, (session.done_B - 1)[:, None] + torch.arange(5))
        p = torch.cat([session.run(window[:, :2]), session.run(window[:, 2:])], dim=1)
        for row in range(rows):
            done = int(session.done_B[row])
            n = min(5, length - done)
            torch.testing.assert_close(p[row, :n], taught[row, done : done + n], atol=1e-5, rtol=1e-4)
        hold_B = torch.randint(5, (rows,), generator=draw)  # every row goes on from a place of its own
        token = true.gather(1, session.done_B[:, None] + torch.arange(5))
        session.commit(chain.Outcome(p, hold_B, token))
    assert len(set(session.done_B.tolist())) == 1
    assert session.done
    assert torch.equal(session.tokens().ids, ids)


def test_all_recipes_run_on_rows_of_their_own_or_say_why_not() -> None:
    found = []
    for name in registry.names("generator"):
        config = cast(Any, registry.get(name).config(registry.get(name).tiny))
        if not isinstance(config, GroupGenerator.Config) or registry.get(name).axes["codec"] != "vq":
            continue
        model = config.build(LARGER, 2)
        reason = chain.refusal(model, model.sampler)
        if reason is None:
            found.append(name)
            continue
        sampler = replace(model.sampler, decoder=Jacobi())
        with pytest.raises(ConfigError, match=r"^sample\.decoder=jacobi: the (feed|net|head|order) "):
            model.check_sampler(sampler)
        with pytest.raises(ConfigError, match=r"^sample\.decoder=jacobi: "):
            model.generate(Labels(torch.zeros(1, dtype=torch.int64)), sampler, SampleDraws.of(0, 0, 1))
    assert tuple(found) == CHAINS


def test_a_draft_model_must_be_there_and_fit() -> None:
    model, sampler = made("raster"), Sampler(decoder=DraftModel())
    with pytest.raises(ConfigError, match="no draft model"):
        model.check_sampler(sampler)
    model.use_draft_model(made("raster", layout=LARGER))
    with pytest.raises(ConfigError, match=r"for other tokens: .*vocabulary"):
        model.check_sampler(sampler)
    model.use_draft_model(made("raster", seed=4))
    model.check_sampler(sampler)
    assert not any(name.startswith("draft") for name in model.state_dict()), "a draft model is no part of the model"


# --- calls, prompts and ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raster", "aim"])
def test_an_easy_model_takes_fewer_calls_than_tokens(name: str) -> None:
    model = ignorant(name)  # what is drafted uniformly holds
    model.use_draft_model(ignorant("raster", seed=9))
    labels, draws = Labels(torch.zeros(3, dtype=torch.int64)), SampleDraws.of(0, 0, 3)
    tokens, trace = model.decode(labels, replace(PLAIN, decoder=Jacobi(window=5)), draws)
    assert tokens.ids.shape == (3, 16)
    assert trace.calls == {"net": 4}
    assert trace.tokens == 16
    trace = model.decode(labels, replace(PLAIN, decoder=DraftModel(window=2)), draws)[1]
    assert trace.calls == {"net": 6, "draft": 16}
    assert trace.tokens == 16
    trace = model.decode(labels, PLAIN, draws)[1]
    assert trace.calls == {"net": 16}
    assert trace.tokens == 16
    assert trace.seconds > 0


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["raster", "aim"])
def test_given_tokens_stay_and_the_others_follow_from_them(name: str, decoder: str) -> None:
    model = pair(name)
    keep = torch.tensor([True, False, True, False])
    given = Tokens(torch.tensor([[2, 0, 1, 0]]).expand(ROWS, -1), LAYOUT)
    labels, sampler = Labels(torch.ones(ROWS, dtype=torch.int64)), replace(PLAIN, decoder=DECODERS[decoder])
    ids = model.inpaint(given, keep, labels, sampler, SampleDraws.of(2, 0, ROWS)).ids
    assert bool((ids[:, keep] == torch.tensor([2, 1])).all())
    # One by one decoding that is given a token goes on from it: p(x1 | 2) p(x3 | 2, x1, 1).
    every, _ = exact(model, 1, PLAIN)
    plan = model.order.decode(LAYOUT, len(every), SampleDraws.of(0, 0, len(every)))
    with torch.no_grad():
        log_p = cast(Any, model.head).logits(model(every, Labels(torch.ones(len(every), dtype=torch.int64)), plan)).log_softmax(-1)
    p = log_p.gather(-1, every.unsqueeze(-1)).squeeze(-1)[:, ~keep].sum(1).double().exp()
    p = torch.where((every[:, keep] == torch.tensor([2, 1])).all(1), p, 0.0)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert surprise(ids, every, p) < 1


@pytest.mark.parametrize("decoder", [None, *DECODERS.values()], ids=["groups", *DECODERS])
@pytest.mark.parametrize("name", ["raster", "aim"])
def test_each_row_may_have_a_prompt_of_its_own_length(name: str, decoder: Decoder | None) -> None:
    model, rows = pair(name), 40
    prompt_B = torch.arange(rows) % (LENGTH + 1)
    keep = torch.arange(LENGTH) < prompt_B[:, None]
    given = torch.randint(CODES, (rows, LENGTH), generator=torch.Generator().manual_seed(0))
    labels, sampler = Labels(torch.ones(rows, dtype=torch.int64)), replace(PLAIN, decoder=decoder)
    ids = model.decode(labels, sampler, SampleDraws.of(6, 0, rows), given=given, keep_L=keep)[0].ids
    assert torch.equal(ids[keep], given[keep])
    assert not torch.equal(ids, given)
    alone = model.decode(Labels(labels.label_B[:1]), sampler, SampleDraws.of(6, 17, 18), given=given[17:18], keep_L=keep[17])[0]
    assert torch.equal(alone.ids[0], ids[17])


@pytest.mark.parametrize("decoder", [None, *DECODERS.values()], ids=["groups", *DECODERS])
def test_rows_end_at_their_stop(decoder: Decoder | None) -> None:
    model, rows = pair("raster"), 200
    labels, sampler = Labels(torch.ones(rows, dtype=torch.int64)), replace(PLAIN, decoder=decoder)
    free, ended = (model.decode(labels, sampler, SampleDraws.of(4, 0, rows), **more)[0] for more in ({}, {"stop": 1}))
    assert ended.lengths is not None
    assert set(ended.lengths.tolist()) == {1, 2, 3, 4}
    for whole, ids, length in zip(free.ids.tolist(), ended.ids.tolist(), ended.lengths.tolist()):
        assert length == (whole.index(1) + 1 if 1 in whole else LENGTH)
        assert ids == whole[:length] + [1] * (LENGTH - length)


# --- as a run file names them -------------------------------------------------------------------------------------


def test_a_run_file_names_the_decoder() -> None:
    assert PLAIN.edited(decoder="jacobi").decoder == Jacobi()
    assert PLAIN.edited(decoder={"jacobi": {"window": 8}}).decoder == Jacobi(window=8)
    assert PLAIN.edited(decoder="jacobi").edited(top_k=3).decoder == Jacobi()
    assert PLAIN.edited().to_dict() == PLAIN.to_dict()
    assert "decoder" not in PLAIN.to_dict()
    with pytest.raises(ConfigError, match=r"^sample\.decoder: {'jacoby': {}}: write one of .*jacobi, .*rejection"):
        PLAIN.edited(decoder="jacoby")
    with pytest.raises(ConfigError, match=r"^sample\.decoder\.jacobi: unknown field 'windows'"):
        PLAIN.edited(decoder={"jacobi": {"windows": 8}})
    with pytest.raises(ConfigError, match=r"window=0"):
        PLAIN.edited(decoder={"jacobi": {"window": 0}})


def test_generators_with_a_way_of_their_own_refuse_decoders() -> None:
    layout = TokenLayout(grids=((2, 2),), vocabulary=8)
    for name in ("vq_ddm", "discrete_interpolants"):
        recipe = registry.get(name)
        model = cast(Any, recipe.config(recipe.tiny)).build(layout, 2)
        with pytest.raises(ConfigError, match=r"^sample\.decoder=jacobi: "):
            model.check_sampler(replace(model.sampler, decoder=Jacobi()))
