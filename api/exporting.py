"""An experiment for other tools: a table of its trials (CSV, Parquet) or an Optuna study."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from api.client import Client
from api.schemas.trials import TrialRead
from orchestrator.objective import objective_name
from trainer.errors import EvenloadError

FORMS = ("--csv", "--parquet", "--optuna")
"""Options that say an experiment is exported; without one it is a run's weights."""
_FIELDS = (
    "number",
    "id",
    "kind",
    "label",
    "batch",
    "state",
    "cause",
    "reason",
    "objective",
    "objective_tokens",
    "veto",
    "spec_version",
    "num_runs",
    "num_retries",
    "created_at_ms",
    "started_at_ms",
    "finished_at_ms",
)


class NotWritten(EvenloadError):
    """An export could not be written; the message says why."""


def wants_experiment(arguments: Sequence[str]) -> bool:
    """True if the arguments of `evenload export` name a form that experiments have."""
    return any(argument.split("=", 1)[0] in FORMS for argument in arguments)


def rows_of(trials: Sequence[TrialRead], further: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table: a trial's fields, `params.PATH`, `summary.FIGURE`, one line per trial.

    Args:
        further: names of the objectives beside the first.
    """
    rows: list[dict[str, Any]] = []
    for trial in trials:
        fields = trial.model_dump(mode="json")
        row = {field: fields[field] for field in _FIELDS}
        for index, name in enumerate(further):
            values = fields["further_values"]
            row[f"objective.{name}"] = None if values is None else values[index]
        row |= {f"params.{path}": value for path, value in fields["params"].items()}
        row |= dict(_scalars("summary", fields["summary"] or {}))
        rows.append(row)
    columns = dict.fromkeys(_FIELDS)
    for prefix in ("objective.", "params.", "summary."):
        columns |= dict.fromkeys(sorted({name for row in rows for name in row if name.startswith(prefix)}))
    return list(columns), rows


def write_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], out: TextIO) -> None:
    """Writes the table as CSV (RFC 4180); what is absent is empty, truth values are `true` and `false`."""
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        values = (row.get(column) for column in columns)
        writer.writerow([json.dumps(value) if isinstance(value, bool) else value for value in values])


def write_parquet(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the table as Parquet; a column with values of several kinds is text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, pa.Array] = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if len(kinds - {int, float}) + bool(kinds & {int, float}) > 1:
            values = [
                None if value is None else value if isinstance(value, str) else json.dumps(value) for value in values
            ]
        elif kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        arrays[column] = pa.array(values)
    try:
        pq.write_table(pa.table(arrays), path)
    except OSError as error:
        raise NotWritten(f"cannot write {path}: {error}") from error


def export_experiment(
    client: Client,
    experiment_id: str,
    *,
    csv_path: str | None = None,
    parquet_path: Path | None = None,
    optuna_url: str | None = None,
    replace: bool = False,
) -> list[str]:
    """Writes what is asked for and returns what was written, in words.

    Args:
        csv_path: `-` is the standard output.
        replace: of a study: write over one of the same name.

    Raises:
        NotWritten: something could not be written.
        ClientError: the server does not answer, or knows no such experiment.
    """
    experiment = client.experiment(experiment_id)
    trials = list(client.trials(experiment_id))
    written: list[str] = []
    if csv_path is not None or parquet_path is not None:
        further = [objective_name(one) for one in experiment.further_objectives]
        columns, rows = rows_of(trials, further)
        if csv_path == "-":
            write_csv(columns, rows, sys.stdout)
        elif csv_path is not None:
            try:
                with Path(csv_path).open("w", encoding="utf-8", newline="") as out:
                    write_csv(columns, rows, out)
            except OSError as error:
                raise NotWritten(f"cannot write {csv_path}: {error}") from error
            written.append(f"{len(rows)} trials to {csv_path}")
        if parquet_path is not None:
            write_parquet(columns, rows, parquet_path)
            written.append(f"{len(rows)} trials to {parquet_path}")
    if optuna_url is not None:
        document = {
            "experiment": experiment.model_dump(mode="json"),
            "trials": [trial.model_dump(mode="json") for trial in trials],
        }
        written.append(_write_study(document, optuna_url, replace=replace))
    return written


def _write_study(document: Mapping[str, Any], url: str, *, replace: bool) -> str:
    """Has the study written by a process of its own, which may load Optuna."""
    from api.supervisor import child_environment

    command = [sys.executable, "-P", "-m", "orchestrator.search.export", url, *(["--replace"] if replace else [])]
    done = subprocess.run(
        command, input=json.dumps(document), capture_output=True, text=True, env=child_environment(), check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise NotWritten(lines[-1].removeprefix("evenload: ") if lines else f"the export ended with {done.returncode}")
    return f"study {done.stdout.strip()!r} to {url}"


def _scalars(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _scalars(f"{path}.{key}", inner)]
    return [] if isinstance(value, list) else [(path, value)]
