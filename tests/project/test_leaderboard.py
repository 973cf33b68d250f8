"""The leaderboard of generators: verdicts on claims, sizes that match, passes that are counted."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

from tokenloom.models.core import registry
from tokenloom.models.core.build import ModelSpec

HERE = Path(__file__).parents[1]
sys.path.append(str(HERE.parent / "benchmarks"))

import budget  # noqa: E402
import generators  # noqa: E402
from claims import Cheaper, Claim, Measured, Passes, Quality, Shown, Spread  # noqa: E402
from claims_of_papers import CLAIMS  # noqa: E402

ENTRIES = {
    "raster": Measured([10.0, 10.2, 9.8], 16, 100.0),
    "better": Measured([5.0], 8, 60.0),
    "close": Measured([10.1], 16, 100.0),
    "worse": Measured([20.0], 4, 120.0),
}


def test_a_quality_is_decided_by_the_spread_of_the_seeds() -> None:
    spread = Spread.of(ENTRIES)
    assert spread.freedom == 2
    assert math.isclose(spread.deviation, 0.02, rel_tol=0.02)
    rule = Quality("raster")
    assert [rule.judge(name, ENTRIES, spread).word for name in ("better", "close", "worse")] == ["held", "undecided", "not"]
    assert Quality("raster", 1.3).judge("close", ENTRIES, spread).word == "held"
    low, high = spread.interval(ENTRIES["close"], ENTRIES["raster"])
    assert low < 1.01 < high
    assert math.isclose(math.log(high / 1.01), math.log(1.01 / low), rel_tol=0.02)


def test_one_seed_decides_nothing() -> None:
    single = {name: Measured(one.quality[:1], one.passes, one.flops) for name, one in ENTRIES.items()}
    assert Quality("raster").judge("better", single, Spread.of(single)).word == "undecided"


def test_passes_and_cost_are_exact() -> None:
    spread = Spread.of(ENTRIES)
    assert Passes(than="raster", fewer=2).judge("better", ENTRIES, spread).word == "held"
    assert Passes(than="raster", fewer=2).judge("close", ENTRIES, spread).word == "not"
    assert Passes(count=5).judge("worse", ENTRIES, spread).word == "not"
    assert Cheaper("raster", 0.7).judge("better", ENTRIES, spread).word == "held"
    assert Cheaper("raster").judge("worse", ENTRIES, spread).word == "not"
    assert Cheaper("absent").judge("worse", ENTRIES, spread).word == "undecided"


def test_the_worst_rule_decides() -> None:
    spread = Spread.of(ENTRIES)
    assert Claim("", (Shown("x"), Quality("raster"))).judge("better", ENTRIES, spread).word == "held"
    assert Claim("", (Shown("x"), Quality("raster"))).judge("close", ENTRIES, spread).word == "undecided"
    assert Claim("", (Quality("raster"), Passes(count=16))).judge("better", ENTRIES, spread).word == "not"


def test_each_entry_is_a_generator_with_a_claim_that_can_be_checked() -> None:
    names = [entry.name for entry in generators.SUITE]
    discrete = {name for name in registry.names() if registry.get(name).kind == "generator"}
    assert len(set(names)) == len(names)
    assert set(names) <= discrete  # a new recipe needs no entry
    assert set(CLAIMS) == set(names) - {generators.REFERENCE}
    tests = "\n".join(file.read_text() for file in HERE.rglob("test_*.py"))
    for name, claim in CLAIMS.items():
        for rule in claim.rules:
            if isinstance(rule, Shown):
                assert re.search(rf"^def {rule.where}\(", tests, re.MULTILINE), f"{name}: there is no test {rule.where}"
            elif than := rule.than:
                assert than in names, f"{name}: {than} is no entry"


def spec(name: str) -> ModelSpec:
    return next(entry for entry in generators.SUITE if entry.name == name).spec()


def test_widths_match_the_reference() -> None:
    reference, _ = budget.matched(spec("raster"), [64], 0)
    cost, wide = budget.matched(spec("npp"), range(32, 128, 16), reference.parameters)
    assert cost.width == wide.args["width"] == 64
    assert cost.parameters == reference.parameters
    # Half of the training is on patches of four tokens: 0.5 + 0.5 / 4 of the positions, the prefix aside.
    assert 0.55 < cost.flops / reference.flops < 0.7


@pytest.mark.parametrize(("name", "passes"), [("raster", 16), ("nar", 7), ("token_shuffle", 4), ("maskgit", 8), ("var", 4)])
def test_passes_of_a_sample(name: str, passes: int) -> None:
    _, wide = budget.matched(spec(name), [32], 0)
    model = wide.build().eval()
    assert budget.passes(model, generators.CLASSES) == passes  # type: ignore[arg-type]
