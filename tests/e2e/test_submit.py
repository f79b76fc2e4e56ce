"""The main job over HTTP, on a really running installation: submit, train, read back; stop, kill, carry on.

One installation for the whole file: starting Ray and MLflow takes most of its time.
"""

import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support import lab as labs
from tests.support.lab import Lab
from tests.support.training import train_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS = 40
STEP_TOKENS = 8 * 16


def tiny_sweep(**fields: Any) -> dict[str, Any]:
    """A dense baseline and two tiny MoEs on two corpora, seconds each."""
    return {
        "name": "tiny sweep",
        "base": train_config(num_steps=NUM_STEPS).model_dump(mode="json"),
        "space": {"optimizer.lr": {"float": [0.003, 0.03], "log": True}},
        "baselines": [{"name": "dense", "set": {"model.moe": None}}],
        "num_trials": 2,
    } | fields


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Not pytest's folder: a path of Ray's sockets has room for 107 characters.
    with tempfile.TemporaryDirectory(prefix="evl-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        with labs.running(home) as running:
            yield running
        labs.wait_until_gone(home)


def test_a_submitted_spec_becomes_trained_models_that_can_be_read_back(lab: Lab) -> None:
    with lab.client() as client:
        experiment = client.submit(tiny_sweep())
        finished = client.wait(experiment.id, timeout_s=300)
        assert finished.state == "completed", finished.reason
        trials = client.trials(experiment.id)
        assert [(trial.kind, trial.label, trial.state.value) for trial in trials] == [
            ("baseline", "dense", "completed"),
            ("search", None, "completed"),
            ("search", None, "completed"),
        ]
        moe = trials[1]

        series = client.series(["train/loss", "router/max_violation"], trials=[moe.id])
        loss, violation = series.items
        assert series.grid == list(range(1, NUM_STEPS + 1))
        assert loss.last[0] == pytest.approx(math.log(1024), rel=0.1)
        assert loss.last[-1] < loss.last[0] - 0.3
        assert violation.num_rows == NUM_STEPS

        loads = client.loads(moe.id)
        assert loads.step == NUM_STEPS
        assert [sum(counts) for counts in loads.counts] == [STEP_TOKENS * loads.top_k] * len(loads.layers)

        evaluations = [one for one in client.evaluations(moe.id).items if one.domain == "all"]
        assert evaluations[-1].bits_per_byte == pytest.approx(moe.objective)
        assert evaluations[-1].bits_per_byte < evaluations[0].bits_per_byte

        comparison = client.comparison(experiment.id)
        assert [row.rank for row in comparison.rows] == [1, 2, 3]
        assert finished.best is not None
        assert finished.best.objective == min(trial.objective for trial in trials[1:])

        kinds = [event.kind for event in client.watch(experiment.id)]
        assert kinds[0] == kinds[-1] == "experiment.state"
        assert kinds.count("trial.proposed") == 3


def mlflow_run(lab: Lab, trial_id: str) -> dict[str, Any]:
    """The MLflow run of a trial once it is closed, read over MLflow's own REST API."""
    deadline = time.monotonic() + 120
    with lab.client() as client:
        while True:
            url = client.trial(trial_id).mlflow_run_url
            if url is not None:
                base, _, page = url.partition("/#/")
                run_id = page.partition("?")[0].rpartition("/")[2]
                answer = httpx.get(f"{base}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, trust_env=False).json()
                if answer["run"]["info"]["status"] == "FINISHED":
                    return answer["run"]
            assert time.monotonic() < deadline, f"MLflow has no finished run of {trial_id}: {url}"
            time.sleep(0.5)


def test_mlflow_keeps_the_same_record(lab: Lab) -> None:
    with lab.client() as client:
        (newest, *_) = client.experiments().items
        trial = client.trials(newest.id)[1]
        run = mlflow_run(lab, trial.id)
        metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
        params = {param["key"]: param["value"] for param in run["data"]["params"]}
        evaluated = [one for one in client.evaluations(trial.id).items if one.domain == "all"][-1]
    bits = [value for key, value in metrics.items() if key.startswith("eval/bits_per_byte") and "all" in key]
    assert bits == [pytest.approx(evaluated.bits_per_byte)]
    assert float(params["optimizer.lr"]) == pytest.approx(trial.params["optimizer.lr"])


def test_the_command_line_tells_the_same(lab: Lab, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(tiny_sweep(name="by hand", baselines=[], num_trials=1)))
    valid = lab.evenload("validate", str(spec), "--json")
    assert json.loads(valid.stdout)["num_trials"] == 1
    followed = lab.evenload("submit", str(spec), "--follow", timeout_s=300)
    assert followed.returncode == 0, followed.stderr
    experiment_id = followed.stdout.splitlines()[0]
    assert "Ranking by eval/bits_per_byte" in followed.stdout
    shown = json.loads(lab.evenload("show", experiment_id, "--json").stdout)
    (trial,) = shown["trials"]
    assert (shown["state"], trial["number"], trial["state"], trial["cause"]) == ("completed", 0, "completed", None)
    assert trial["params"].keys() == {"optimizer.lr"}
    assert [run["state"] for run in trial["runs"]] == ["completed"]
    listed = json.loads(lab.evenload("list", "--json").stdout)
    assert listed[0]["id"] == experiment_id
    again = lab.evenload("up", "--port", str(lab.port))
    assert again.returncode == 0
    assert "up already" in again.stdout
    assert f"http://127.0.0.1:{lab.port}/" in again.stdout


def test_a_refused_spec_names_the_field_on_the_command_line(lab: Lab, tmp_path: Path) -> None:
    document = tiny_sweep()
    document["base"]["model"]["moe"]["topk"] = 2
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(document))
    refused = lab.evenload("submit", str(spec))
    assert refused.returncode == 1
    assert "/base/model/moe/topk" in refused.stderr
    assert "top_k" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_body_of_50_mb_is_answered_at_once(lab: Lab) -> None:
    token = (lab.home / "token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for _ in range(800):
            yield b"x" * 65536

    for content in (b"x" * 50_000_000, chunks()):
        answer = httpx.post(
            f"http://127.0.0.1:{lab.port}/v1/experiments", content=content, headers=headers, trust_env=False, timeout=20
        )
        assert answer.status_code == 413
        assert answer.json()["type"].endswith("body-too-large")


def test_killed_outright_it_leaves_nothing_and_carries_on(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="evl-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        port = labs.free_port()
        process = labs.start(home, port=port)
        try:
            labs.wait_for_output(home, process, "Stop with")
            # Long enough to be caught in the middle: some twenty times the other tests' steps.
            base = train_config(num_steps=800, loop={"checkpoint_every_tokens": 20 * STEP_TOKENS})
            document = tiny_sweep(base=base.model_dump(mode="json"), baselines=[], num_trials=1)
            with Lab(home, port, process).client() as client:
                experiment = client.submit(document)
                for event in client.watch(experiment.id):
                    if event.kind == "checkpoint.committed":
                        break
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            labs.wait_until_gone(home)
            home.with_suffix(".out").write_text("")
            process = labs.start(home, port=port)
            labs.wait_for_output(home, process, "Stop with")
            with Lab(home, port, process).client() as client:
                finished = client.wait(experiment.id, timeout_s=300)
                assert finished.state == "completed", finished.reason
                (trial,) = client.trials(experiment.id)
                runs = client.runs(trial.id).items
                assert len(runs) > 1
                assert runs[-1].resumed_from_step
                series = client.series(["train/loss"], trials=[trial.id], points=1000)
                assert series.grid == list(range(1, 801))  # every step once, from whichever run
        finally:
            assert labs.end(process) == 0
        labs.wait_until_gone(home)
        assert subprocess.run(labs.command("down"), env=labs.environment(home), check=False).returncode == 0
