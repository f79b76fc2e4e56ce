"""Trains the arms of the study and sums them up: `python studies/002-seeing-collapse/arms.py --out FOLDER`.

Every arm is `train.yaml` with a few changes, trained with each seed on the same batches as the others of that seed. The
planted arm starts from the very weights of the balanced one but for two numbers: the biases of two experts in the
router of one layer, so large that every token of every batch goes to them. It is an ordinary run from a start
checkpoint; nothing in the trainer knows of it.
"""

import argparse
import json
import logging
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from trainer.config import TrainConfig
from trainer.config.run import RunReport, RunRequest
from trainer.data.shards import default_cache_dir
from trainer.interop.start import Start, save_start
from trainer.model.build import build_model
from trainer.worker import run

logger = logging.getLogger(__name__)

STUDY = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)

SICK_LAYER, SICK_EXPERTS, SICK_BIAS = 2, (3, 5), 40.0
"""The planted collapse. Softmax gives the other 14 experts e**-40 of these two: no gradient reaches them."""

ARMS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "planted": {},
    "unbalanced": {"balancing": []},
    "overbalanced": {"balancing": [{"kind": "load_balancing_loss", "coefficient": 5.0}]},
    "random": {"balancing": [], "router": {"kind": "random"}},
}
"""Name -> what it changes in `model.moe`."""

OVER_LAST = 0.1
"""Share of the steps at the end that figures are averaged over."""


def arm_config(arm: str, seed: int, *, folder: Path) -> TrainConfig:
    """Return the config of one run; the planted arm's start checkpoint is written to `folder`/start."""
    document = yaml.safe_load((STUDY / "train.yaml").read_text(encoding="utf-8"))
    document["seed"] = seed
    document["model"]["moe"] |= ARMS[arm]
    if arm == "planted":
        document["start"] = {"kind": "checkpoint", "path": str((folder / "start").absolute())}
        plant(TrainConfig.model_validate(document), folder / "start")
    return TrainConfig.model_validate(document)


def plant(config: TrainConfig, folder: Path) -> None:
    """Write the weights that `config` would draw, with one router that sends every token to two experts."""
    model = build_model(config.model, seed=config.seed, device=torch.device("cpu"))
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    bias_E = tensors[f"blocks.{SICK_LAYER}.feed_forward.router.bias"]
    bias_E[list(SICK_EXPERTS)] = SICK_BIAS
    start = Start(
        model=config.model,
        tokenizer=config.data.tokenizer,
        max_position_embeddings=None,
        origin="the balanced arm's first weights, one router forced",
    )
    save_start(folder, start, tensors)


def train(arm: str, seed: int, out: str) -> dict[str, Any]:
    """Train one run on one thread, or take the one that is there, and return its figures."""
    folder = Path(out) / f"{arm}-{seed}"
    done = folder / "figures.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        reports: list[RunReport] = []
        request = RunRequest(
            run_id=folder.name,
            config=arm_config(arm, seed, folder=folder),
            folder=str(folder),
            cache_folder=str(default_cache_dir()),
        )
        run(request, reports.append)
        last = reports[-1]
        if last.summary is None:
            raise RuntimeError(f"{folder.name} ended as {last.kind}: {last.message}")
        done.write_text(json.dumps(figures(arm, seed, last, folder), indent=1), encoding="utf-8")
    return json.loads(done.read_text(encoding="utf-8"))


def figures(arm: str, seed: int, report: RunReport, folder: Path) -> dict[str, Any]:
    """Return what the README's tables are made of."""
    summary = report.summary
    assert summary is not None
    router = table(folder, "router")
    layers = np.unique(router["layer"].to_numpy())
    num_last = max(1, round(OVER_LAST * len(router) / len(layers)))

    def by_layer(metric: str) -> np.ndarray:
        return router[metric].to_numpy().reshape(-1, len(layers))[-num_last:].mean(axis=0)

    def told(metric: str) -> dict[str, float]:
        values_L = by_layer(metric)
        return {"mean": float(values_L.mean()), "min": float(values_L.min()), "max": float(values_L.max())}

    probes = table(folder, "probes")
    newest = probes.filter(pa.compute.equal(probes["step"], probes["step"].to_numpy().max()))
    return {
        "arm": arm,
        "seed": seed,
        "final_loss": summary.final_loss,
        "bits_per_byte": summary.bits_per_byte["all"],
        "router": {name: told(f"router/{name}") for name in REPORTED},
        "by_layer": {name: by_layer(f"router/{name}").tolist() for name in REPORTED},
        "probe_churn": newest["probe/churn"].to_pylist(),
        "domain_information": summary.domain_information,
        "num_spikes": summary.num_spikes,
        "alarms": [
            {name: event[name] for name in ("step", "rule", "change", "metric", "layer")}
            for event in lines(folder / "alarms.jsonl")
        ],
        "duration_s": summary.training_duration_s,
    }


REPORTED = (
    "token_entropy",
    "load_entropy",
    "effective_experts",
    "max_load",
    "max_violation",
    "load_cv",
    "persistent_dead_fraction",
    "mutual_information",
    "top_k_mass",
    "margin",
    "grad_norm",
    "expert_grad_norm",
)
"""Router metrics of the tables."""


def table(folder: Path, kind: str) -> pa.Table:
    """Return a telemetry table of a run, its chunks in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "telemetry").glob(f"{kind}-*.parquet")))


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file of JSON lines; [] if there are none."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Train what is not trained yet, and write `results.json` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="Folder of the runs; those that are complete are kept.")
    parser.add_argument("--processes", type=int, default=2, help="Runs at a time, one thread each.")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = [(arm, seed) for seed in SEEDS for arm in ARMS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        pending = [pool.submit(train, arm, seed, arguments.out) for arm, seed in wanted]
        found = []
        for each in pending:
            found.append(each.result())
            logger.info("%s, seed %d: loss %.4f", found[-1]["arm"], found[-1]["seed"], found[-1]["final_loss"])
    (STUDY / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
