"""`evenload export` takes a trial or a run of the home by its id."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from api.address import publish_address
from api.auth import ensure_token
from orchestrator.store.records import RunRecord
from tests.support import lab as labs
from tests.support.api import installation, listening
from tests.support.stores import claimed, proposed, started
from tests.support.training import train_config
from trainer.checkpoint import save_checkpoint
from trainer.model.build import build_model
from trainer.optimizers.build import build_optimizer


@dataclass(frozen=True)
class Home:
    """A served home with a trial whose run wrote a checkpoint."""

    root: Path
    trial_id: str
    run: RunRecord


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    root = tmp_path / "home"
    root.mkdir()
    token = ensure_token(root / "token")
    with installation(root, token=token) as lab, listening(lab) as url:
        publish_address(root, url)
        experiment_id, epoch = claimed(lab.database)
        trial = proposed(lab.database, experiment_id, epoch)
        run = started(lab.database, trial.id, epoch)
        config = train_config(model={"moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 16}})
        model = build_model(config.model, seed=0, device=torch.device("cpu"))
        save_checkpoint(
            root / run.folder,
            step=3,
            config=config,
            data_fingerprint="",
            world_size=1,
            model=model,
            optimizer=build_optimizer(config.optimizer, model),
            state={},
        )
        yield Home(root, trial.id, run)


def test_a_trial_and_a_run_are_exported_by_id(home: Home, tmp_path: Path) -> None:
    for name in (home.trial_id, home.run.id):
        result = labs.evenload(home.root, "export", "--hf", "--run", name, "--out", str(tmp_path / name), "--json")
        assert result.returncode == 0, result.stderr
        told = json.loads(result.stdout)
        assert told["model_type"] == "mixtral"
        assert told["origin"] == f"run {home.run.id}, step 3"
        assert (tmp_path / name / "model.safetensors").is_file()


def test_an_unknown_id_is_refused_in_one_line(home: Home, tmp_path: Path) -> None:
    result = labs.evenload(home.root, "export", "--hf", "--run", "trl_0", "--out", str(tmp_path / "out"))
    assert result.returncode == 1
    assert "trl_0" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
