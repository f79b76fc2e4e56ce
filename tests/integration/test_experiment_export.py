"""An experiment for other tools: what Optuna, a spreadsheet and a data frame find in what `evenload export` writes."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet as pq
import pytest

from api.address import publish_address
from api.auth import ensure_token
from orchestrator.search.export import NotExported, write_study
from tests.support import lab as labs
from tests.support.api import Installation, installation, listening
from tests.support.sweeps import play, submit, sweep_document, take_over

SPACE = {
    "optimizer.lr": {"float": [1e-4, 3e-2], "log": True},
    "optimizer.weight_decay": {"float": [0.0, 0.5], "step": 0.1},
    "seed": {"choice": [1, 2, 3]},
}


@dataclass(frozen=True)
class Served:
    """A served home with a sweep that is over."""

    lab: Installation
    experiment_id: str

    def document(self) -> dict[str, Any]:
        with self.lab.client(headers={"Authorization": f"Bearer {self.lab.settings.token}"}) as client:
            path = f"/v1/experiments/{self.experiment_id}"
            trials = client.get(f"{path}/trials").json()["items"]
            return {"experiment": client.get(path).json(), "trials": trials}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("export") / "home"
    root.mkdir()
    with installation(root, token=ensure_token(root / "token")) as lab, listening(lab) as url:
        publish_address(root, url)
        document = sweep_document(
            num_trials=9,
            space=SPACE,
            constraints=["optimizer.lr < 1"],
            baselines=[{"name": "base"}],
            objective={"constraints": [{"metric": "tokens_per_s", "at_least": 3}]},
        )
        experiment_id = submit(lab.database, document)
        play(take_over(lab.database, root, experiment_id))
        yield Served(lab, experiment_id)


def loaded(name: str, url: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=name, storage=url)


def test_optuna_opens_the_study_with_everything_that_happened(served: Served, tmp_path: Path) -> None:
    document = served.document()
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = loaded(write_study(document, url), url)
    trials = [trial for trial in document["trials"] if trial["kind"] == "search"]
    states = {"completed": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    assert [trial.state for trial in study.trials] == [states[trial["state"]] for trial in trials]
    assert {trial["state"] for trial in trials} == {"completed", "pruned"}
    for told, trial in zip(study.trials, trials, strict=True):
        assert told.params == pytest.approx(trial["params"])
        assert told.intermediate_values == {rung["tokens"]: rung["value"] for rung in trial["rungs"]}
        # What the scripted runs say of their speed; of pruned ones nothing is known.
        assert told.constraints == {"tokens_per_s >= 3": 2.0 if trial["state"] == "completed" else 0.0}
        assert (told.user_attrs["trial_id"], told.user_attrs.get("cause")) == (trial["id"], trial["cause"])
        assert told.datetime_start is not None
        assert told.datetime_start.timestamp() * 1000 == pytest.approx(trial["started_at_ms"], abs=1)
    assert set(study.trials[0].distributions) == set(SPACE)
    assert study.trials[0].distributions["seed"] == optuna.distributions.CategoricalDistribution([1, 2, 3])
    assert list(study.user_attrs["baselines"]) == ["base"]
    assert study.metric_names == ["eval/bits_per_byte (all)"]
    # Optuna goes on with it as with one of its own.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2, multivariate=True)
        study.tell(study.ask(study.trials[0].distributions), 1.0)
    assert study.best_value == 1.0
    with pytest.raises(NotExported, match="--replace"):
        write_study(document, url)
    write_study(document, url, replace=True)
    with pytest.raises(NotExported, match="cannot write"):
        write_study(document, f"sqlite:///{tmp_path / 'no' / 'folder' / 'study.db'}")


def test_several_objectives_and_choices_that_python_takes_for_equal(tmp_path: Path) -> None:
    space = {"seed": {"choice": [1, 2]}, "model.moe.router.normalize": {"choice": [True, False, 1]}}
    further = [{"metric": "tokens_per_s", "direction": "maximize"}]
    with installation(tmp_path / "home") as lab:
        document = sweep_document(
            num_steps=2,
            num_trials=3,
            scheduler={"kind": "none"},
            further_objectives=further,
            space={"seed": space["seed"]},
        )
        experiment_id = submit(lab.database, document)
        play(take_over(lab.database, tmp_path / "home", experiment_id))
        sent = Served(lab, experiment_id).document()
    sent["experiment"]["spec"]["space"] = space
    for index, trial in enumerate(sent["trials"]):
        trial["params"]["model.moe.router.normalize"] = (True, 1, False)[index]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = loaded(write_study(sent, url), url)
    assert [trial.params["model.moe.router.normalize"] for trial in study.trials] == ["true", "1", "false"]
    assert study.directions == [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]
    assert [trial.values for trial in study.trials] == [[trial["objective"], 1.0] for trial in sent["trials"]]


def test_command_writes_every_form_of_an_experiment(served: Served, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    forms = ("--csv", str(tmp_path / "t.csv"), "--parquet", str(tmp_path / "t.parquet"), "--optuna", url)
    result = labs.evenload(served.lab.home, "export", served.experiment_id, *forms)
    assert result.returncode == 0, result.stderr
    assert len(loaded(f"{served.experiment_id} tiny sweep", url).trials) == 9
    trials = served.document()["trials"]
    with (tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [int(line["number"]) for line in lines] == [row["number"] for row in table] == list(range(10))
    for line, row, trial in zip(lines, table, trials, strict=True):
        assert (line["state"], row["state"]) == (trial["state"], trial["state"])
        assert row["objective"] == trial["objective"]
        assert float(line["objective"]) == trial["objective"]
        assert {path: row[f"params.{path}"] for path in SPACE} == {path: trial["params"].get(path) for path in SPACE}
        assert row["summary.bits_per_byte.all"] == (trial["objective"] if trial["state"] == "completed" else None)
    again = labs.evenload(served.lab.home, "export", served.experiment_id, "--optuna", url)
    assert (again.returncode, "--replace" in again.stderr) == (1, True)
