"""Writes docs/metrics.md from the catalogue: `python -m trainer.metrics.page`, or with `--check` compares only."""

import sys
from pathlib import Path

from trainer.metrics.catalog import METRICS, MetricSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

_HEAD = """# Metrics

Every metric evenload records. Generated from `trainer/metrics/catalog.py` by `python -m trainer.metrics.page`.
Counts are those of the whole optimizer step, summed over micro-batches and workers before any ratio. Token entropy (how
decided the router is) and load entropy (how even the load is) are two metrics. Read the worst layer: a mean over layers
hides a collapsed one. Loads are what was asked for, before capacity drops anything and without what null experts were
sent; their bounds are those of tokens that all have top_k experts.

| metric | unit | one value per | bounds | better | definition | source |
|---|---|---|---|---|---|---|
"""


def _row(spec: MetricSpec) -> str:
    bounds = f"{spec.lower or ''} .. {spec.upper or ''}" if spec.lower or spec.upper else ""
    per = ", ".join(("step", *spec.axes))
    cells = (f"`{spec.name}`", spec.unit, per, bounds, spec.better or "", spec.description, spec.source or "")
    return "| " + " | ".join(cells) + " |\n"


def render() -> str:
    """The text of docs/metrics.md."""
    return _HEAD + "".join(_row(spec) for spec in METRICS.values())


def main() -> None:
    """Writes the page; with `--check`, exits 1 if it is not what would be written."""
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != render():
            sys.exit(f"{PAGE.name} is stale; run: python -m trainer.metrics.page")
        return
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render())


if __name__ == "__main__":
    main()
