"""An analysis for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from api.schemas.search import Analysis, AnalysisRead, Importance
from api.tables import number

_METHODS = {
    "ped_anova": "PED-ANOVA: what sets the best tenth apart",
    "fanova": "fANOVA: what explains the variance over the space",
}


def analysis_view(answer: AnalysisRead) -> RenderableType:
    """All of it but the slices, with what each part rests on."""
    found = answer.analysis
    assert found is not None
    parts: list[RenderableType] = []
    if answer.state != "current":
        parts.append(Text("Of earlier trials; a newer analysis is being worked out.", style="yellow"))
    parts += [Text("Best so far", style="bold"), Text(found.best_basis, style="dim"), _best(found)]
    if len(found.objectives) > 1:
        parts += [Text("\nPareto front", style="bold"), Text(found.front_basis, style="dim"), _front(found)]
    for importance in found.importance:
        parts += _importance(found, importance)
    return Group(*parts)


def _best(found: Analysis) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("trial", "objective", "completed by then", "tokens by then"):
        table.add_column(name, justify="right")
    for one in found.best_so_far:
        table.add_row(str(one.number), number(one.objective, 4), str(one.num_completed), f"{one.tokens:,}")
    return table


def _front(found: Analysis) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("trial", justify="right")
    for objective in found.objectives:
        table.add_column(f"{objective.metric} ({objective.domain}), {objective.direction}", justify="right")
    for point in sorted(found.front, key=lambda point: point.values):
        table.add_row(str(point.number), *(number(value, 4) for value in point.values))
    return table


def _importance(found: Analysis, importance: Importance) -> list[RenderableType]:
    what = (
        "reaching the Pareto front" if importance.objective is None else found.objectives[importance.objective].metric
    )
    where = "" if importance.condition is None else f", where {importance.condition}"
    head = Text(f"\nImportance for {what}{where}", style="bold")
    basis = Text(f"{_METHODS[importance.method]}; {importance.basis}", style="dim")
    if importance.problem is not None:
        return [head, basis, Text(importance.problem)]
    table = Table(box=None, pad_edge=False)
    table.add_column("parameter")
    table.add_column("share", justify="right")
    table.add_column("over resamples", justify="right")
    for one in importance.parameters:
        table.add_row(one.name, f"{100 * one.importance:.0f} %", f"{100 * one.low:.0f} to {100 * one.high:.0f} %")
    return [head, basis, table]
