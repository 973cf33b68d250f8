"""Laws of classifier-free guidance over the registry: labels are dropped in training, samples follow the guided distribution, and a
step that chooses its positions is drawn from what teacher forcing says."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenloom.models.core import registry, signals
from tokenloom.models.core.config import Config, ConfigError
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.core.protocols import Batch, Conditions, Generator, Labels, LayoutError, TokenLayout, Tokens
from tokenloom.models.generators.discrete_state import DiscreteState
from tokenloom.models.generators.group_wise import GroupGenerator
from tokenloom.models.parts.conditions import Conditioner, condition_of
from tokenloom.models.parts.feeds.markov import MaskedScales
from tokenloom.models.parts.plan import Plan
from tokenloom.models.sampling.sampler import Sampler
from tokenloom.models.zoo.generators.coarse_to_fine.module import CoarseToFine
from tokenloom.models.zoo.generators.infinity.head import Bitwise
from tokenloom.models.zoo.generators.tokenbridge_ar.head import Channelwise

CLASSES, NULL, CODES = 3, 3, 6  # the null class is one past the last
NAMES = registry.names("generator")
#: Those whose steps take the positions that they are surest of.
CHOOSING = [n for n in NAMES if getattr(getattr(registry.get(n).config(registry.get(n).tiny), "order", None), "choice", None) is not None]
Grids = tuple[tuple[int, int], ...]


def dropping(config: Any, rate: float) -> Any:
    """A config with this label dropout in each of its conditions."""
    if isinstance(config, Conditioner.Config):
        return replace(config, dropout=rate)  # type: ignore[call-arg]
    inside = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return replace(config, **{k: dropping(v, rate) for k, v in inside.items() if isinstance(v, Config) and condition_of(v)})


def tiny(
    name: str, grids: Grids, rate: float | None = None, spread: float = 0.0, codes: int = CODES, seed: int = 0, **changes: Any
) -> Generator:
    """The tiny model of a recipe on the first layout that it takes: these grids, with two codebooks, a grid of four, or values for codes.

    Where its tokenizer has scales, the layout is that of scales up to the side of the grid, or of two scales, for what needs a second one.

    With a ``spread`` weights are drawn that large, and those of conditions larger, so that what is drawn hangs on the class.
    """
    recipe = registry.get(name)
    codec = registry.get(recipe.codec)
    layouts = [TokenLayout(grids=g, vocabulary=codes, codebooks=q) for g, q in ((grids, 1), (grids, 2), (((2, 2),), 1))]
    layouts += [TokenLayout(grids=g, channels=3) for g in (grids, ((2, 2),))]
    given = {"tokenizer": codec.config(dict(codec.tiny)), "signal": signals.image(4 * grids[0][0], 1)}
    choices = [(layout, given) for layout in layouts]
    if "scales" in inspect.signature(codec.function).parameters:
        choices = []
        for side in dict.fromkeys((grids[0][0], 2)):
            given = {"tokenizer": codec.config(dict(codec.tiny) | {"scales": [1, 2][:side]}), "signal": signals.image(4 * side, 1)}
            choices.append((given["tokenizer"].build(signal=given["signal"]).layout, given))  # type: ignore[attr-defined]
    config = recipe.config(dict(recipe.tiny) | changes)
    config = config if rate is None else dropping(config, rate)
    for layout, stands in choices:
        torch.manual_seed(seed)
        try:
            model = config.build(layout=layout, classes=CLASSES, **stands).eval()  # type: ignore[attr-defined]
            model.generate(Labels(torch.zeros(1, dtype=torch.int64)), model.sampler, SampleDraws.of(0, 0, 1))
        except LayoutError:
            continue
        break
    else:
        raise AssertionError(f"{name} takes none of {[layout for layout, _ in choices]}")
    assert isinstance(model, Generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if spread and parameter.requires_grad and parameter.ndim > 1:
                nn.init.normal_(parameter, std=spread)
        for module in model.modules():
            for own in module.parameters() if spread and isinstance(module, Conditioner) else ():
                nn.init.normal_(own, std=0.5)
    return model


def some(layout: TokenLayout, rows: int) -> Tensor:
    if layout.channels:
        return torch.randn(rows, layout.length, layout.channels, generator=torch.Generator().manual_seed(0))
    shape = (rows, layout.length) + ((layout.codebooks,) if layout.codebooks > 1 else ())
    return torch.randint(layout.vocabulary, shape, generator=torch.Generator().manual_seed(0))


# Label dropout

#: Those that draw the rows without a class for each of their passes apart, as their released code does.
APART = {"himar"}


@pytest.mark.parametrize("name", NAMES)
def test_training_asks_a_share_of_rows_for_the_null_class(name: str) -> None:
    rate, rows, steps = 0.3, 16, 10
    model = tiny(name, ((2, 2),), rate)
    batch = Batch(tokens=Tokens(some(model.layout, rows), model.layout), conditions=Labels(torch.arange(rows) % CLASSES))
    asked: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], (Labels, Conditions)):
            asked.setdefault(module, []).append(Conditions.of(inputs[0])["class"].label_B)

    for module in model.modules():
        if isinstance(module, Conditioner):
            module.register_forward_pre_hook(note)

    def dropped(step: int, start: int = 0, stop: int = rows) -> Tensor:
        """(conditions, or calls of those that draw for each apart, rows) of which the null class was asked; all others keep their own."""
        asked.clear()
        part = Batch(tokens=Tokens(batch.tokens.data[start:stop], model.layout), conditions=batch.conditions.part(start, stop))  # type: ignore[union-attr]
        with torch.no_grad():
            model.losses(part, model.phases[0], Draws(0, step, steps, start, stop, rows))
        labels = [torch.stack(calls) for calls in asked.values()]
        assert all(bool(((each == NULL) | (each == part.conditions["class"].label_B)).all()) for each in labels)  # type: ignore[union-attr]
        if name in APART:
            return torch.cat([each == NULL for each in labels])
        return torch.stack([(each == NULL).any(0) for each in labels])

    model.train()
    found = torch.stack([dropped(step) for step in range(steps)])
    share = found.float().mean((0, 2))
    assert bool(((share > 0.2) & (share < 0.4)).all()), share
    assert len({tuple(each.flatten().tolist()) for each in found}) > steps / 2  # other rows at other steps
    assert torch.equal(torch.cat([dropped(2, 0, 5), dropped(2, 5, rows)], dim=1), found[2])
    model.eval()
    assert not bool(dropped(0).any())


@pytest.mark.parametrize(
    "name", [n for n in NAMES if {"label_dropout", "condition_dropout"} & {*inspect.signature(registry.get(n).function).parameters}]
)
def test_recipes_hand_their_label_dropout_on(name: str) -> None:
    recipe = registry.get(name)
    key = next(k for k in ("label_dropout", "condition_dropout") if k in inspect.signature(recipe.function).parameters)
    assert condition_of(recipe.config(dict(recipe.tiny) | {key: 0.25})).dropout == 0.25  # type: ignore[union-attr]


# What is drawn under guidance


def strength(p: Tensor, null: Tensor, guided: Tensor, group: Tensor) -> tuple[float, float]:
    """The weight w of guidance and its standard error, from how often codes were drawn with the class, with the null class and guided.

    In a group of codes ``log guided = (1 + w) log p - w log null + constant``.
    """
    often = (torch.stack([p, null, guided]) >= 20).all(0)
    x, y = (p / null).log(), (guided / p).log()
    sure = torch.where(often, 1 / (1 / guided + 4 / p + 1 / null), 0.0)
    for k in group.unique():
        own = often & (group == k)
        for values in (x, y):
            values[own] -= (sure[own] * values[own]).sum() / sure[own].sum()
    spread = (sure * x.square())[often].sum()
    return float((sure * x * y)[often].sum() / spread), float(spread**-0.5)


def plain(model: Generator) -> Sampler:
    """The model's sampler without guidance and filters, in one step where it may be asked for."""
    sampler = model.sampler.edited(guidance=0.0, guidance_schedule="constant", temperature=1.0, top_k=0, top_p=1.0)  # type: ignore[union-attr, operator]
    try:
        model.check_sampler(sampler.edited(steps=1))
    except ConfigError:
        return sampler
    return sampler.edited(steps=1)


def drawn(model: Generator, labels: list[int], rows: int, weight: float) -> list[Tensor]:
    """Ids (rows, L or L Q) of each label."""
    asked = Labels(torch.tensor(labels).repeat_interleave(rows))
    ids = model.generate(asked, plain(model).edited(guidance=weight), SampleDraws.of(0, 0, asked.rows)).ids
    return list(ids.flatten(1).split(rows))


OTHERWISE: list[tuple[str, dict[str, Any]]] = [("sigma_gpt", {"burst": 1}), ("discrete_interpolants", {"sampling": "masked"})]
EXACT: dict[str, dict[str, Any]] = {"acdit": {"blocks": 1}, "coarse_to_fine": {"labels": 2}, "srdd": {"rounds": 0}}


@pytest.mark.parametrize(("name", "changes"), [(name, EXACT.get(name, {})) for name in NAMES] + OTHERWISE)
def test_samples_follow_the_guided_distribution(name: str, changes: dict[str, Any]) -> None:
    sharp: dict[int, float] = {}
    for seed in range(8):
        found = measured(tiny(name, ((1, 1),), spread=0.15, seed=seed, **changes))
        # Where the class hardly matters, weights of 0, 1/2 or 2 could not be told from 1.
        sharp = {part: weight for part, (weight, error) in enumerate(found) if error < 0.1} | sharp
        if len(sharp) == len(found):
            break
    assert len(sharp) == len(found), f"the class hardly matters to {name}: {found}"
    assert list(sharp.values()) == pytest.approx([1] * len(found), abs=0.35)


def measured(model: Generator, rows: int = 3000, label: int = 2) -> list[tuple[float, float]]:
    """Weights of guidance and their errors in samples whose weight is one."""
    head = getattr(model, "head", None)
    if model.layout.channels:
        pytest.skip("it draws values, which have no counts; what guidance does to them hangs on the head, and is tested with it")
    if isinstance(head, Channelwise):
        pytest.skip("its features are guided, not its logits")
    if isinstance(model, DiscreteState):  # what the noise was does not matter, the condition alone does
        nn.init.zeros_(model.table.books[0].weight)  # type: ignore[arg-type]
    codes = model.layout.vocabulary
    books = model.layout.codebooks if isinstance(head, Bitwise) else 1  # others draw the first codebook before the next

    def counts(ids: Tensor) -> Tensor:
        """Of the first position, which knows nothing but the condition, by codebook and code."""
        return torch.stack([each.bincount(minlength=codes) for each in ids[:, :books].unbind(1)]).flatten().float()

    seen = [counts(ids) for ids in (*drawn(model, [label, NULL], rows, 0.0), *drawn(model, [label], rows, 1.0))]
    if isinstance(model, CoarseToFine):  # a label, then a code under it
        labels = [torch.zeros(len(model.label_V.unique())).index_add_(0, model.label_V, each) for each in seen]
        return [strength(*labels, torch.zeros(len(labels[0]), dtype=torch.int64)), strength(*seen, model.label_V)]
    return [strength(*seen, torch.arange(books).repeat_interleave(codes))]


def test_channel_by_channel_the_features_are_guided() -> None:
    model = tiny("tokenbridge_ar", ((1, 1),), spread=0.15)
    assert isinstance(model, GroupGenerator)
    assert isinstance(model.head, Channelwise)
    h, null = (next(model.decode_steps(Labels(torch.tensor([k])), plain(model), SampleDraws.of(0, 0, 1))).h_BnD for k in (2, NULL))
    found = drawn(model, [2], 4000, 1.0)[0][:, 0].bincount(minlength=CODES) / 4000
    first = torch.zeros(1, 1, 2, dtype=torch.int64)

    def off(weight: float) -> float:
        with torch.no_grad():
            expected = model.head.logits((1 + weight) * h - weight * null, first)[0, 0, 0].softmax(-1)  # type: ignore[operator]
        return float((found - expected).abs().sum() / 2)

    assert off(1.0) < 0.03
    assert min(off(w) for w in (-1.0, 0.0, 0.5, 2.0)) > 0.06


def test_guided_bursts_are_distributed_as_guided_one_by_one_decoding() -> None:
    rows, codes, shares = 6000, 3, []
    for burst, weight in ((0, 2.0), (1, 2.0), (1, 0.0)):
        model = tiny("sigma_gpt", ((1, 2),), spread=0.25, codes=codes, burst=burst)
        sampler = replace(plain(model).edited(guidance=weight), sizes=None)
        ids = model.generate(Labels(torch.full((rows,), 2)), sampler, SampleDraws.of(0, 0, rows)).ids
        shares.append((codes * ids[:, 0] + ids[:, 1]).bincount(minlength=codes**2) / rows)
    one_by_one, bursts, free = shares
    assert float((bursts - one_by_one).abs().sum() / 2) < 0.03
    assert float((free - one_by_one).abs().sum() / 2) > 0.1


# Steps that choose their positions


@pytest.mark.parametrize("name", CHOOSING)
def test_steps_that_choose_see_what_teacher_forcing_shows_of_the_tokens_known(name: str) -> None:
    rows = 4
    three: dict[str, Any] = {"steps": 3, "schedule": ((1, 1, 2),)}
    steps_of = {key: value for key, value in three.items() if key in inspect.signature(registry.get(name).function).parameters}
    model = tiny(name, ((2, 2),), spread=0.15, **steps_of)
    assert isinstance(model, GroupGenerator)
    length, scales = model.layout.length, isinstance(model.feed, MaskedScales)
    labels = Labels(torch.arange(rows) % CLASSES)
    steps = list(model.decode_steps(labels, model.sampler.edited(guidance=0.0), SampleDraws.of(0, 0, labels.rows)))
    assert len(steps) >= 3
    order = torch.cat([step.place_Bn.expand(rows, -1) for step in steps], dim=1)
    assert bool((order.sort(1).values == torch.arange(length)).all())
    data = torch.zeros_like(order).scatter(1, order, torch.cat([step.data for step in steps], dim=1))
    decoded, done = model.order.decode(model.layout, rows, SampleDraws.of(0, 0, rows)), 0
    for step in steps:
        among = decoded.candidates(step.group)[0].tolist()
        assert torch.equal(step.data, step.drawn.gather(1, step.place_Bn - among[0]))
        known = torch.zeros(rows, length, dtype=torch.bool).scatter(1, order[:, :done], True)
        for at, place in enumerate(among):
            open_B = ~known[:, place]
            if model.feed.passes == "whole" or scales:  # all positions at once, from those known
                sizes = model.layout.scale_sizes if scales else (length,)
                some = None if scales and not bool(known[:, among].any()) else known  # of a new scale nothing is known
                plan, read = Plan(torch.arange(length)[None], sizes, decoded.window, known_BL=some), place
            else:  # a chain in which this position comes next
                key = 2 * (~known).long()
                key[:, place] -= 1
                plan, read = Plan(torch.cat([order[:, :done], key.argsort(1)[:, done:]], dim=1), (1,) * length), done
            with torch.no_grad():
                taught = model(data, labels, plan)[:, read]
            torch.testing.assert_close(step.h_BnD[open_B, at], taught[open_B], atol=2e-5, rtol=1e-5)
        done += step.place_Bn.shape[1]
    assert done == length
