"""`python -m trainer` answers with figures, tables and exit statuses that can be relied on."""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.training import STEP_TOKENS, train_config
from trainer.cli import main
from trainer.model.size import model_size
from trainer.presets import preset_names
from trainer.program import PROGRAM_VARIABLE


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(train_config(num_steps=4).model_dump(mode="json")))
    return path


def test_params_prints_the_agreed_json(config_file: Path):
    figures = json.loads(invoke("params", config_file, "--json").stdout)
    assert figures.keys() == {
        "total",
        "active",
        "active_minus_input_embedding",
        "non_embedding_total",
        "non_embedding_active",
        "flops_per_token",
        "memory_gib",
    }
    assert figures["total"] == model_size(train_config().model).total
    assert figures["memory_gib"]["total"] > 0


def test_params_prints_a_table_for_people(config_file: Path):
    result = invoke("params", config_file)
    assert result.exit_code == 0
    assert f"{model_size(train_config().model).total:,}" in result.stdout


def test_params_knows_presets_by_name():
    figures = json.loads(invoke("params", "olmoe-1b-7b", "--json").stdout)
    assert (figures["total"], figures["active"]) == (6_919_161_856, 1_282_017_280)


def test_params_without_an_argument_lists_every_preset():
    listed = json.loads(invoke("params", "--json").stdout)
    assert tuple(listed) == preset_names()
    assert listed["mixtral-8x7b"]["total"] == 46_702_792_704
    table = invoke("params").stdout
    assert all(name in table for name in preset_names())
    assert "46.70B" in table


@pytest.mark.parametrize("command", ["params", "train"])
def test_what_is_neither_file_nor_preset_exits_with_2_and_lists_presets(tmp_path: Path, command: str):
    out = ["--out", tmp_path / "out"] if command == "train" else []
    result = invoke(command, "olmoe-1b-7c", *out)
    assert result.exit_code == 2
    assert "there is no file 'olmoe-1b-7c'" in result.stderr
    assert "did you mean olmoe-1b-7b?" in result.stderr
    assert "qwen3-30b-a3b" in result.stderr


def test_params_answers_without_loading_torch(config_file: Path):
    code = f"import sys; from trainer.cli import main; main(['params', {str(config_file)!r}], standalone_mode=False); "
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_data_lists_every_corpus():
    rows = json.loads(invoke("data", "--json").stdout)
    assert [row["name"] for row in rows] == ["books", "code_python", "docs", "legal", "math_formal", "speeches"]
    assert all(row["licence"] and row["splits"]["validation"]["num_bytes"] > 0 for row in rows)


@pytest.mark.parametrize("command", ["params", "train"])
def test_bad_config_exits_with_2_and_names_the_field(tmp_path: Path, command: str):
    document = train_config().model_dump(mode="json")
    document["model"]["moe"]["top_k"] = 9
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(document))
    out = ["--out", tmp_path / "out"] if command == "train" else []
    result = invoke(command, tmp_path / "bad.yaml", *out)
    assert result.exit_code == 2
    assert "top_k=9" in result.stderr
    assert not (tmp_path / "out").exists()


def test_train_prints_the_table_of_domains(config_file: Path, tmp_path: Path):
    result = invoke("train", config_file, "--out", tmp_path / "out", "--threads", 1)
    assert result.exit_code == 0, result.stderr
    for word in ("legal", "speeches", "all", "MaxVio", "trained", "untrained", "shuffled", "fp32"):
        assert word in result.stdout
    assert (tmp_path / "out" / "checkpoints" / "step-00000004").is_dir()


def test_train_json_is_the_summary(config_file: Path, tmp_path: Path):
    result = invoke("train", config_file, "--out", tmp_path / "out", "--threads", 1, "--json")
    assert json.loads(result.stdout)["bits_per_byte"].keys() == {"legal", "speeches", "all"}


def test_train_does_not_overwrite_a_run(config_file: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    result = invoke("train", config_file, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--resume" in result.stderr


def test_resume_skips_a_damaged_checkpoint(config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    document = train_config(num_steps=4, loop={"checkpoint_every_tokens": 2 * STEP_TOKENS}).model_dump(mode="json")
    config_file.write_text(yaml.safe_dump(document))
    out = tmp_path / "out"
    assert invoke("train", config_file, "--out", out, "--threads", 1).exit_code == 0
    whole = (out / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()
    (out / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(whole[:-1])
    result = invoke("train", config_file, "--out", out, "--threads", 1, "--resume")
    assert result.exit_code == 0, result.stderr
    assert "from step-00000002" in result.stderr
    assert "step-00000004" in caplog.text
    assert (out / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes() == whole


def test_resume_with_another_config_fails_and_says_what_differs(config_file: Path, tmp_path: Path):
    assert invoke("train", config_file, "--out", tmp_path / "out", "--threads", 1).exit_code == 0
    config_file.write_text(yaml.safe_dump(train_config(num_steps=4, optimizer={"lr": 0.5}).model_dump(mode="json")))
    result = invoke("train", config_file, "--out", tmp_path / "out", "--threads", 1, "--resume")
    assert result.exit_code == 1
    assert "optimizer.lr: checkpoint 0.01, this run 0.5" in result.stderr


@pytest.mark.parametrize("command", ["train", "params", "data", "export", "import", "replay", "bundle"])
def test_help_and_refusals_name_the_program_that_was_called(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["evenload", command, "-h"])
    monkeypatch.setenv(PROGRAM_VARIABLE, "evenload")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        runpy.run_module("trainer", run_name="__main__")
    assert ended.value.code == 0
    assert said.getvalue().startswith(f"Usage: evenload {command} ")
    assert PROGRAM_VARIABLE not in os.environ, "a process that this one starts is not what was called"
