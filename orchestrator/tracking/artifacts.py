"""The files of an ended trial or experiment for MLflow: configs, events, expert loads, and pictures of the loads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.store.records import ExperimentRecord, TrialRecord
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.pictures import write_load_pictures
from orchestrator.tracking.series import Source, alarms, spikes


def write_artifacts(source: Source, trial: TrialRecord, folder: Path) -> None:
    """Writes to `folder`, which is empty.

    config.json always; environment.json and code.patch of the newest run that has them; spikes.json and alarms.json
    if there were any; and of a mixture of experts router_loads.parquet (step, tokens, layer, load), router_loads.png
    and router_load_histogram.png.
    """
    _write_json(folder / "config.json", trial.config)
    for name in ("environment.json", "code.patch"):
        newest = next((path for run in reversed(source.folders) if (path := run / name).exists()), None)
        if newest is not None:
            shutil.copyfile(newest, folder / name)
    for name, found in (("spikes.json", spikes(source)), ("alarms.json", alarms(source))):
        if found:
            _write_json(folder / name, found)
    table = columns(source.folders, "router", ["tokens", "layer", "router/load"])
    if len(table["step"]):
        loads = table.pop("router/load")
        arrays = {name: pa.array(array) for name, array in table.items()}
        arrays["load"] = pa.FixedSizeListArray.from_arrays(pa.array(loads.reshape(-1)), loads.shape[1])
        pq.write_table(pa.table(arrays), folder / "router_loads.parquet", compression="zstd")
        write_load_pictures(source, folder)


def write_spec(experiment: ExperimentRecord, folder: Path) -> None:
    """Writes spec.json, the experiment's spec with every default filled in."""
    _write_json(folder / "spec.json", experiment.spec)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
