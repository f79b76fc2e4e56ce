"""Pictures of a trial's expert loads, for where nobody draws them: MLflow shows an image, but not an array.

Letters: `S` steps, `L` MoE layers, `E` experts.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from orchestrator.tracking.chunks import columns
from orchestrator.tracking.series import Source

HEATMAP_FILE = "router_loads.png"
HISTOGRAM_FILE = "router_load_histogram.png"

_MAX_COLUMNS = 300
_MAX_LAYERS = 32
_OCTAVES = 2.0
_LAST_SHARE = 0.1
_DPI = 100


def write_load_pictures(source: Source, folder: Path) -> None:
    """Writes the two pictures of a trial with router telemetry to `folder`.

    router_loads.png: per layer one panel, experts over training tokens, colour is log2(load / fair) from -2 to 2, and
    an expert that got no token is black; fair is the mean load of the layer's experts. router_load_histogram.png: per
    layer, how the loads over the last tenth of the steps spread around fair. The same telemetry gives the same bytes.
    """
    table = columns(source.folders, "router", ["tokens", "layer", "router/load"])
    layers = np.unique(table["layer"]).astype(int)
    loads_SLE = table["router/load"].reshape(-1, len(layers), table["router/load"].shape[1]).astype(np.float64)
    tokens_S = table["tokens"][:: len(layers)]
    # Every picture of a deep model shows as many layers, spread evenly over it.
    shown = np.unique(np.linspace(0, len(layers) - 1, min(_MAX_LAYERS, len(layers))).round().astype(int))
    _heatmap(loads_SLE[:, shown], tokens_S, layers[shown].tolist()).savefig(
        folder / HEATMAP_FILE, dpi=_DPI, metadata={"Software": None}
    )
    last_LE = loads_SLE[-max(1, round(len(loads_SLE) * _LAST_SHARE)) :, shown].sum(axis=0)
    _histogram(last_LE, layers[shown].tolist()).savefig(folder / HISTOGRAM_FILE, dpi=_DPI, metadata={"Software": None})


def octaves_from_fair(loads: np.ndarray) -> np.ndarray:
    """log2(load / fair) along the last axis, fair being its mean; NaN where an expert got nothing."""
    fair = loads.mean(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2(loads / fair)
    return np.where(loads > 0, octaves, np.nan)


def _heatmap(loads_SLE: np.ndarray, tokens_S: np.ndarray, layers: list[int]) -> Figure:
    starts = np.unique(np.linspace(0, len(loads_SLE), min(_MAX_COLUMNS, len(loads_SLE)), endpoint=False).astype(int))
    octaves_PLE = octaves_from_fair(np.add.reduceat(loads_SLE, starts, axis=0))
    num_experts = loads_SLE.shape[-1]
    figure = Figure(figsize=(9, 1.2 + 1.1 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    image = None
    for panel, layer, octaves_PE in zip(panels, layers, octaves_PLE.swapaxes(0, 1), strict=True):
        panel.set_facecolor("black")
        image = panel.imshow(
            octaves_PE.T,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r",
            vmin=-_OCTAVES,
            vmax=_OCTAVES,
            extent=(0, float(tokens_S[-1]), num_experts - 0.5, -0.5),
        )
        panel.set_ylabel(f"layer {layer}\nexpert", fontsize=8)
        panel.tick_params(labelsize=8)
    panels[-1].set_xlabel("training tokens", fontsize=8)
    assert image is not None, "there is a layer"
    bar = figure.colorbar(image, ax=list(panels), label="log2(load / fair), black: none", extend="both")
    bar.ax.tick_params(labelsize=8)
    figure.suptitle("Load per expert", fontsize=10)
    return figure


def _histogram(loads_LE: np.ndarray, layers: list[int]) -> Figure:
    figure = Figure(figsize=(9, 1.2 + 1.1 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    shares_LE = loads_LE / loads_LE.mean(axis=-1, keepdims=True)
    edges = np.linspace(0, max(2.0, float(shares_LE.max())), 41)
    for panel, layer, shares_E in zip(panels, layers, shares_LE, strict=True):
        panel.hist(shares_E, bins=edges.tolist(), color="#3b6ea5")
        panel.axvline(1.0, color="black", linewidth=0.8)
        panel.set_ylabel(f"layer {layer}\nexperts", fontsize=8)
        panel.tick_params(labelsize=8)
    panels[-1].set_xlabel("load / fair, over the last tenth of the steps", fontsize=8)
    figure.suptitle("Spread of the loads over experts", fontsize=10)
    return figure
