"""Parameters, FLOPs and memory of a configuration, for `evenload params`. Torch-free."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from trainer.config import TrainConfig
from trainer.model.size import flops_per_token, memory_estimate, model_size

_EXPLANATION = (
    "Parameters: all, and active ones with both embeddings, without the input's, without both; training FLOPs per "
    "token; memory of one worker. Exact: evenload params PRESET"
)


def size_figures(config: TrainConfig) -> dict[str, Any]:
    """Return the counts of `ModelSize`, training FLOPs per token and, in GiB by part, the memory of one worker."""
    return {
        **asdict(model_size(config.model)),
        "flops_per_token": flops_per_token(config.model, seq_len=config.data.seq_len),
        "memory_gib": {name.removesuffix("_gib"): value for name, value in asdict(memory_estimate(config)).items()},
    }


def size_table(name: str, figures: Mapping[str, Any]) -> Table:
    """Return a table of one configuration's `size_figures`."""
    table = Table("figure", "value", title=name)
    for figure, value in figures.items():
        if isinstance(value, dict):
            for part, gib in value.items():
                table.add_row(f"memory, {part}", f"{gib:.3f} GiB")
        else:
            table.add_row(figure.replace("_", " "), f"{value:,.0f}")
    return table


def presets_view(presets: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Return a table with one line of `size_figures` per preset, and what its columns mean."""
    table = Table(title="presets")
    table.add_column("preset", no_wrap=True)
    for name in ("total", "active", "-in emb", "-emb", "GFLOPs", "GiB"):
        table.add_column(name, justify="right")
    counts = ("total", "active", "active_minus_input_embedding", "non_embedding_active")
    for name, figures in presets.items():
        gib = figures["memory_gib"]["total"]
        table.add_row(
            name,
            *(_short_count(figures[count]) for count in counts),
            f"{figures['flops_per_token'] / 1e9:,.3g}",
            f"{gib:,.0f}" if gib >= 10 else f"{gib:.1f}",
        )
    return Group(table, _EXPLANATION)


def _short_count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"
