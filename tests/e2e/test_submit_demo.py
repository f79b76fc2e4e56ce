"""`evenload demo` as a newcomer meets it: interrupted, run again, and a third time; on a spec of seconds."""

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_submit import tiny_sweep
from tests.support import lab as labs
from tests.support.training import train_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="evl-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "home"


def test_an_interrupted_demo_carries_on_and_a_finished_one_starts_anew(home: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    base = train_config(num_steps=400).model_dump(mode="json")
    spec.write_text(yaml.safe_dump(tiny_sweep(base=base)))
    demo = ("demo", "--exit", "--spec", str(spec))
    port = labs.free_port()

    process = labs.start(home, port=port, arguments=demo)
    output = labs.wait_for_output(home, process, "0 of 3 trials over")
    assert "Submitted experiment" in output
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    labs.wait_until_gone(home)

    home.with_suffix(".out").write_text("")
    process = labs.start(home, port=port, arguments=demo)
    output = labs.wait_for_output(home, process, "Everything is stopped", timeout_s=400)
    assert process.wait(60) == 0
    labs.wait_until_gone(home)
    (experiment_id,) = {word for word in output.split() if word.startswith("exp_")}
    for said in (
        "Ranking by eval/bits_per_byte",
        "Held-out bits per byte by domain",
        "Router health, worst layer",
        "untrained",
        "What this does not show",
        "one seed",
        "to baseline",
        f"http://127.0.0.1:{port}/",
        "MLflow",
    ):
        assert said in output

    home.with_suffix(".out").write_text("")
    process = labs.start(home, port=port, arguments=demo)
    output = labs.wait_for_output(home, process, "Submitted experiment")
    assert experiment_id not in output
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "Traceback" not in home.with_suffix(".out").read_text()
    labs.wait_until_gone(home)
