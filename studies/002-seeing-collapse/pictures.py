"""Draws the study's pictures from recorded telemetry: `python studies/002-seeing-collapse/pictures.py --out FOLDER`.

FOLDER is that of `arms.py`. Letters: `S` steps, `L` MoE layers, `E` experts.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from arms import lines, table  # the script beside this one
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from trainer.config import TrainConfig

STUDY = Path(__file__).resolve().parent

COLOURS = {
    "balanced": "#0072b2",
    "planted": "#d55e00",
    "unbalanced": "#009e73",
    "overbalanced": "#cc79a7",
    "random": "#777777",
}
"""Of the arms: Okabe and Ito's, apart for colour-blind eyes."""

MARKERS = {"collapse": "o", "dead_experts": "D", "divergence": "^", "entropy_floor": "v"}
MARKER_SIZES = {"collapse": 8, "dead_experts": 4, "divergence": 7, "entropy_floor": 7}
SMOOTHED_STEPS = 16
DPI = 110

Floats = NDArray[np.float64]


class Run:
    """What the pictures need of one run: its config and its telemetry by step and layer."""

    def __init__(self, folder: Path) -> None:
        self.arm, seed = folder.name.rsplit("-", 1)
        self.seed = int(seed)
        self.config = TrainConfig.model_validate(
            json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
        )
        scalars, self._router = table(folder, "scalars"), table(folder, "router")
        self.step_S = scalars["step"].to_numpy()
        self.loss_S = scalars["train/loss"].to_numpy()
        self.layers = np.unique(self._router["layer"].to_numpy()).tolist()
        self.alarms = lines(folder / "alarms.jsonl")
        self.spike_steps = sorted({event["step"] for event in lines(folder / "spikes.jsonl")})

    def router(self, metric: str) -> Floats:
        """Return a router metric, shape [S, L]."""
        return self._router[f"router/{metric}"].to_numpy().reshape(-1, len(self.layers))

    def loads(self) -> Floats:
        """Return tokens per expert, shape [S, L, E]."""
        rows = np.array(self._router["router/load"].to_pylist(), dtype=np.float64)
        return rows.reshape(len(self.step_S), len(self.layers), -1)


def draw_series(runs: list[Run]) -> Figure:
    """Above what is usually plotted, below what shows a collapse: the same runs."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    panels_and_series = (
        (panels[0, 0], "training loss, mean of 16 steps (nats/token)", lambda run: _smoothed(run.loss_S)),
        (panels[0, 1], "token entropy, mean over layers (nats)", lambda run: run.router("token_entropy").mean(axis=1)),
        (panels[0, 2], "load entropy, mean over layers (nats)", lambda run: run.router("load_entropy").mean(axis=1)),
        (panels[1, 0], "effective experts, worst layer", lambda run: run.router("effective_experts").min(axis=1)),
        (panels[1, 1], "MaxVio, worst layer", lambda run: run.router("max_violation").max(axis=1)),
        (
            panels[1, 2],
            "mutual information, lowest layer (nats)",
            lambda run: run.router("mutual_information").min(axis=1),
        ),
    )
    for panel, title, series in panels_and_series:
        for run in runs:
            panel.plot(run.step_S, series(run), color=COLOURS[run.arm], linewidth=1.0, alpha=0.85)
        panel.set_title(title, fontsize=10)
        _plain(panel)
    for panel in panels[1]:
        panel.set_xlabel("step", fontsize=9)
    _legend(figure)
    return figure


def draw_loads(runs: list[Run], *, seed: int) -> Figure:
    """Load per expert over training, one column per arm and one row per layer; black is an expert without a token."""
    chosen = [run for run in runs if run.seed == seed]
    figure = Figure(figsize=(2.4 * len(chosen) + 1, 6.2), layout="constrained")
    panels = figure.subplots(len(chosen[0].layers), len(chosen), sharex=True, sharey=True, squeeze=False)
    image = None
    for column, run in enumerate(chosen):
        loads_SLE = run.loads()
        with np.errstate(divide="ignore"):
            octaves_SLE = np.log2(loads_SLE / loads_SLE.mean(axis=2, keepdims=True))
        for row, layer in enumerate(run.layers):
            panel = panels[row, column]
            panel.set_facecolor("black")
            image = panel.imshow(
                np.where(np.isfinite(octaves_SLE[:, row]), octaves_SLE[:, row], np.nan).T,
                aspect="auto",
                interpolation="nearest",
                cmap="RdBu_r",
                vmin=-3,
                vmax=3,
                extent=(0, float(run.step_S[-1]), loads_SLE.shape[2] - 0.5, -0.5),
            )
            if row == 0:
                panel.set_title(run.arm, fontsize=10, color=COLOURS[run.arm])
            if column == 0:
                panel.set_ylabel(f"layer {layer}\nexpert", fontsize=9)
            panel.tick_params(labelsize=8)
        panels[-1, column].set_xlabel("step", fontsize=9)
    assert image is not None, "there is a run"
    figure.colorbar(image, ax=panels.ravel().tolist(), label="log2(load / fair share), black: none", extend="both")
    return figure


def draw_alarms(runs: list[Run]) -> Figure:
    """When the default rules spoke, by run, and within a run by layer, the first on top."""
    figure = Figure(figsize=(10, 1.0 + 0.46 * len(runs)), layout="constrained")
    panel = figure.subplots()
    for row, run in enumerate(runs):
        panel.axhspan(row - 0.42, row + 0.42, color="#f3f3f3", zorder=0)
        panel.plot(run.spike_steps, [row] * len(run.spike_steps), "|", color="black", markersize=18, zorder=1)
        middle = (len(run.layers) - 1) / 2
        for event in run.alarms:
            panel.plot(
                event["step"],
                row + 0.21 * ((middle if event["layer"] is None else event["layer"]) - middle),
                MARKERS[event["rule"]],
                color=COLOURS[run.arm],
                markerfacecolor=COLOURS[run.arm] if event["change"] == "raised" else "white",
                markeredgecolor="white" if event["change"] == "raised" else COLOURS[run.arm],
                markersize=MARKER_SIZES[event["rule"]],
                zorder=3 if event["rule"] == "dead_experts" else 2,
            )
    panel.set_yticks(range(len(runs)), [f"{run.arm}, seed {run.seed}" for run in runs], fontsize=8)
    panel.set_ylim(len(runs) - 0.4, -0.6)
    panel.set_xlim(0, float(runs[0].step_S[-1]) + 4)
    panel.set_xlabel("step; full: raised, hollow: cleared; the height within a row is the layer, 0 on top", fontsize=9)
    kinds = [
        Line2D([], [], linestyle="", marker=marker, markersize=MARKER_SIZES[rule], color="black", label=rule)
        for rule, marker in MARKERS.items()
    ]
    spikes = Line2D([], [], linestyle="", marker="|", color="black", markersize=12, label="spike of loss or gradient")
    figure.legend(handles=[*kinds, spikes], loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    _plain(panel)
    return figure


def draw_separation(results: list[dict], *, num_experts: int, top_k: int) -> Figure:
    """The end of training, every metric on the scale of its own bounds: 0 even, 1 total collapse."""
    full, least = math.log(num_experts), math.log(top_k)
    scales = {
        "load_entropy": (full, least, "min"),
        "effective_experts": (num_experts, top_k, "min"),
        "max_violation": (0.0, num_experts / top_k - 1, "max"),
        "load_cv": (0.0, math.sqrt(num_experts / top_k - 1), "max"),
        "max_load": (1 / num_experts, 1 / top_k, "max"),
        "persistent_dead_fraction": (0.0, 1 - top_k / num_experts, "max"),
    }
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panel = figure.subplots()
    arms = list(COLOURS)
    for row, (metric, (even, collapsed, worst)) in enumerate(scales.items()):
        for result in results:
            place = row + 0.13 * (arms.index(result["arm"]) - 2)
            colour = COLOURS[result["arm"]]
            for which, face in (("mean", "white"), (worst, colour)):
                value = (result["router"][metric][which] - even) / (collapsed - even)
                panel.plot(value, place, "o", color=colour, markerfacecolor=face, markersize=5, alpha=0.9)
    panel.set_yticks(range(len(scales)), [f"router/{metric}" for metric in scales], fontsize=9)
    panel.set_ylim(len(scales) - 0.5, -0.5)
    panel.set_xlabel("0: even loads, 1: every token to the same two experts", fontsize=9)
    panel.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    panel.axvline(1, color="#bbbbbb", linewidth=0.8, zorder=0)
    _plain(panel)
    shapes = [
        Line2D([], [], linestyle="", marker="o", color="black", label="worst layer"),
        Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="white", label="mean over layers"),
    ]
    _legend(figure, shapes)
    return figure


def _smoothed(series_S: Floats) -> Floats:
    """The mean of the last 16 values, of fewer at the start."""
    sums = np.cumsum(np.concatenate(([0.0], series_S)))
    ends = np.arange(1, len(series_S) + 1)
    starts = np.maximum(0, ends - SMOOTHED_STEPS)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _legend(figure: Figure, more: list[Line2D] | None = None) -> None:
    arms = [Line2D([], [], color=colour, label=arm) for arm, colour in COLOURS.items()]
    figure.legend(handles=[*arms, *(more or [])], loc="outside upper center", ncols=7, fontsize=9, frameon=False)


def main() -> None:
    """Writes the four pictures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="Folder of the runs.")
    folders = Path(parser.parse_args().out)
    results = json.loads((STUDY / "results.json").read_text(encoding="utf-8"))
    results.sort(key=lambda one: (list(COLOURS).index(one["arm"]), one["seed"]))
    runs = [Run(folders / f"{one['arm']}-{one['seed']}") for one in results]
    moe = runs[0].config.model.moe
    assert moe is not None, "the arms are mixtures of experts"
    pictures = {
        "series": draw_series(runs),
        "loads": draw_loads(runs, seed=0),
        "alarms": draw_alarms(runs),
        "separation": draw_separation(results, num_experts=moe.num_experts, top_k=moe.top_k),
    }
    for name, figure in pictures.items():
        figure.savefig(STUDY / f"{name}.png", dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()
