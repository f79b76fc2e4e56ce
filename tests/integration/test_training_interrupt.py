"""Ctrl-C during `train` writes a checkpoint, says how to go on, and going on gives what an undisturbed run gives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.support.training import train_config


def command(config_file: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "trainer", "train", str(config_file), "--out", str(out), "--threads", "1", *more]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_training_goes_on_exactly(tmp_path: Path, number: signal.Signals, status: int):
    config_file = tmp_path / "train.yaml"
    config = train_config(num_steps=150, loop={"log_every_steps": 5})
    config_file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    out = tmp_path / "out"
    child = subprocess.Popen(command(config_file, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "progress.json").exists():  # from the first logged step on; pytest's timeout bounds the wait
        assert child.poll() is None, child.communicate()
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == status, errors
    assert f"train {config_file} --out {out} --resume" in errors.replace("\n", "")
    assert not (out / "stop").exists()
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert checkpoint.name != "step-00000150"

    resumed = subprocess.run(command(config_file, out, "--resume"), capture_output=True, text=True, timeout=200)
    assert resumed.returncode == 0, resumed.stderr
    whole = subprocess.run(command(config_file, tmp_path / "whole"), capture_output=True, text=True, timeout=200)
    assert whole.returncode == 0, whole.stderr
    last = Path("checkpoints") / "step-00000150" / "model.safetensors"
    assert (out / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert load_file(out / last)
