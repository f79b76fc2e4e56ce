"""The files of an ended trial or experiment for MLflow: configs, events, expert loads, and pictures of the loads."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.store.records import ExperimentRecord, TrialRecord
from orchestrator.tracking.chunks import chunks, columns
from orchestrator.tracking.pictures import write_load_pictures
from orchestrator.tracking.series import Source, alarms, spikes
from trainer.bundle import BundleInvalid, write_bundle
from trainer.recorded_run import NotRecorded
from trainer.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, PACKAGES_FILE, PATCH_FILE

logger = logging.getLogger(__name__)

BUNDLE_FILE = "bundle.tar.gz"


def write_artifacts(source: Source, experiment: ExperimentRecord, trial: TrialRecord, folder: Path) -> None:
    """Writes to `folder`, which is empty.

    config.json always; environment.json, code.patch and packages.txt of the newest run that has them; spikes.json and
    alarms.json if there were any; of a mixture of experts router_loads.parquet (step, tokens, layer, load),
    router_loads.png and router_load_histogram.png; and bundle.tar.gz, from which the newest run that trained can be
    replayed (`trainer.bundle`).
    """
    _write_json(folder / CONFIG_FILE, trial.config)
    for name in (ENVIRONMENT_FILE, PATCH_FILE, PACKAGES_FILE):
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
    trained = next((run for run in reversed(source.folders) if chunks(run, "scalars")), None)
    if trained is not None:
        try:
            write_bundle(trained, folder / BUNDLE_FILE, spec=_json(experiment.spec))
        except (BundleInvalid, NotRecorded) as error:
            logger.warning("trial %s has no bundle in MLflow: %s", trial.id, error)


def write_spec(experiment: ExperimentRecord, folder: Path) -> None:
    """Writes spec.json, the experiment's spec with every default filled in."""
    _write_json(folder / "spec.json", experiment.spec)


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(_json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()
