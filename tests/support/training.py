"""Tiny runs on real text: a few dozen steps of milliseconds each, and what they leave behind."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint_manifest import MANIFEST_FILE
from trainer.config import TrainConfig
from trainer.config.run import RunReport, RunRequest
from trainer.data.shards import default_cache_dir
from trainer.sealed import sealed, unsealed
from trainer.worker import run

DIVERGING = {"optimizer": {"lr": 10.0, "weight_decay": 10.0}}
"""Each step multiplies the decayed weights by 1 - 10 * 10: they overflow float32 within 20 steps."""

STEP_TOKENS = 8 * 16
"""Tokens of a step of `train_config`."""

ALL_BALANCERS = [
    {"kind": "load_balancing_loss", "coefficient": 0.01},
    {"kind": "router_z_loss", "coefficient": 0.001},
    {"kind": "loss_free_bias", "update_rate": 0.01},
]


def train_config(*, num_steps: int = 12, **sections: dict[str, Any]) -> TrainConfig:
    """Returns a 2-layer MoE of width 32 on two corpora, 8 sequences of 16 tokens a step in 2 micro-batches.

    `sections` merge into the config's sections: `loop={"log_every_steps": 1}`; `seed` and the like are set as they are.
    """
    document: dict[str, Any] = {
        "model": {
            "vocab_size": 1024,
            "dim": 32,
            "num_layers": 2,
            "hidden_dim": 32,
            "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
            "moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 16, "balancing": ALL_BALANCERS},
        },
        "data": {
            "mixture": {"legal": 1, "speeches": 1},
            "tokenizer": "bpe-1024",
            "seq_len": 16,
            "evaluation_tokens": 128,
        },
        "optimizer": {"lr": 0.01},
        "loop": {
            "budget_tokens": num_steps * STEP_TOKENS,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "log_every_steps": 5,
        },
    }
    for name, fields in sections.items():
        document[name] = document[name] | fields if isinstance(fields, dict) and name in document else fields
    return TrainConfig.model_validate(document)


@dataclass
class Finished:
    """A run after `run_training`: its folder and every report it made."""

    folder: Path
    reports: list[RunReport] = field(default_factory=list)

    @property
    def last(self) -> RunReport:
        return self.reports[-1]

    def table(self, kind: str) -> pa.Table:
        """Returns a telemetry table (scalars, router, evaluations), its chunks in order."""
        return read_chunks(self.folder, kind)

    def weights(self) -> dict[str, Tensor]:
        """Returns the model's tensors in the last checkpoint reported."""
        assert self.last.checkpoint is not None
        return load_file(Path(self.last.checkpoint.folder) / "model.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        """Returns the optimizer's tensors in the last checkpoint reported."""
        assert self.last.checkpoint is not None
        return load_file(Path(self.last.checkpoint.folder) / "optimizer.safetensors")


def request(config: TrainConfig, folder: Path, **fields: Any) -> RunRequest:
    """Returns the request of a run on one thread of one CPU worker."""
    return RunRequest(run_id="test", config=config, folder=str(folder), cache_folder=str(default_cache_dir()), **fields)


def run_training(config: TrainConfig, folder: Path, **fields: Any) -> Finished:
    """Runs a worker to its end in this process; `fields` are those of the RunRequest."""
    finished = Finished(folder)
    run(request(config, folder, **fields), finished.reports.append)
    return finished


def read_chunks(folder: Path, kind: str) -> pa.Table:
    """Returns the telemetry table `kind` of a run's folder, its chunks in order."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "telemetry").glob(f"{kind}-*.parquet")))


def exact_columns(table: pa.Table) -> pa.Table:
    """Returns the columns that two equal runs share to the last bit: all but times and speeds.

    What was not measured, NaN, is null in it, so that it equals itself.
    """
    names = [name for name in table.column_names if name != "time_ms" and "throughput/" not in name]
    columns: list[Any] = [table[name] for name in names]
    measured = [
        pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column
        for column in columns
    ]
    return pa.table(dict(zip(names, measured, strict=True)))


def by_other_code(checkpoint: Path, to: Path, *, code_fingerprint: str | None) -> Path:
    """Copies a checkpoint to `to`, with the manifest that code of that fingerprint would have written, or of none."""
    shutil.copytree(checkpoint, to)
    content = unsealed((to / MANIFEST_FILE).read_bytes())
    assert content is not None
    del content["code_fingerprint"]
    noted = {} if code_fingerprint is None else {"code_fingerprint": code_fingerprint}
    (to / MANIFEST_FILE).write_bytes(sealed(content | noted))
    return to
