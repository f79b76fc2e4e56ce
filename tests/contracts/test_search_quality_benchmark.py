"""The tables of docs/search.md are those of the kept results, and the landscapes are what their descriptions say."""

import json

import pytest

from benchmarks.landscapes import BUDGET_STEPS, CURVES, Curve, LandscapePoint, optimum, regret
from benchmarks.machine import CHECKOUT
from benchmarks.search_quality import PARTS, RESULT, direct_table, early_table, spread, tuner_sentence

DOCS = (CHECKOUT / "docs" / "search.md").read_text(encoding="utf-8")
KEPT = json.loads(RESULT.read_text(encoding="utf-8"))["parts"]


def test_tables_of_the_docs_are_those_of_the_results() -> None:
    assert set(KEPT) == set(PARTS)
    for shown in (direct_table(KEPT), early_table(KEPT), tuner_sentence(KEPT)):
        assert shown in DOCS


@pytest.mark.parametrize("curve", CURVES.values())
def test_no_point_ends_below_the_optimum(curve: Curve) -> None:
    points = [LandscapePoint(a / 12, b / 5, c / 5) for a in range(13) for b in range(6) for c in range(6)]
    assert min(regret(curve, point) for point in points) >= 0
    assert any(regret(curve, point) < 0.05 for point in points)
    assert optimum(curve) >= 2


def test_early_losses_mislead_in_order_or_in_level() -> None:
    good, fast = LandscapePoint(0.3, 0.6, 0.4), LandscapePoint(0.9, 0.6, 0.4)
    for name in ("crossing", "rising"):
        curve = CURVES[name]
        assert curve(fast, 3) < curve(good, 3)
        assert curve(fast, BUDGET_STEPS) > curve(good, BUDGET_STEPS)
    assert CURVES["overfitting"](fast, 3) > CURVES["overfitting"](good, 3)
    bad = LandscapePoint(0.6, 0.6, 0.4)
    assert CURVES["overfitting"](bad, 3) < CURVES["overfitting"](good, BUDGET_STEPS)


def test_spread_of_a_sample() -> None:
    assert spread([1.0, 2.0, 3.0]).mean == spread([1.0, 2.0, 3.0]).median == 2.0
    # 4.3027 standard errors of 1 / sqrt(3).
    assert spread([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
