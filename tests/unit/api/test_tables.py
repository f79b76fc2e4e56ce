"""What people read in the terminal: units, lengths, and that nothing breaks on what is missing."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from api.schemas.comparison import Comparison, ComparisonRow, DomainInformation, DomainScore
from api.schemas.trials import TrialRead
from api.tables import comparison_view, count, duration, event_line, event_text, params_text, trials_table
from orchestrator.spec import Objective
from orchestrator.states import Cause, TrialState


def printed(view: RenderableType) -> str:
    output = StringIO()
    Console(file=output, width=200).print(view)
    return output.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3661, "1 h 01 min")],
)
def test_durations_are_said_as_people_do(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0, "0"),
        (0.00123, "0.0012"),
        (12, "12"),
        (1234, "1.23k"),
        (5.6e6, "5.6M"),
        (2e15, "2P"),
        (1e21, "1e+03E"),
    ],
)
def test_counts_have_three_digits_and_a_letter(value: float | None, said: str) -> None:
    assert count(value) == said


def test_parameters_are_named_by_the_end_of_their_path() -> None:
    params = {"optimizer.lr": 0.00012345, "model.moe.balancing": "loss", "optimizer.router.lr_scale": 2.0}
    assert params_text(params) == "lr=0.0001234, balancing=loss, router.lr_scale=2"
    assert params_text({}) == "-"


def test_events_are_one_line() -> None:
    data = {"from": None, "to": "running", "reason": "", "domains": {"all": {"bits_per_byte": 3.456789}}, "ids": [1, 2]}
    assert event_text(data) == "to=running domains=all=bits_per_byte=3.457 ids=[1, 2]"


def test_spike_and_alarm_are_sentences_on_one_line_whatever_the_documents_hold() -> None:
    spike = {"metric": "train/loss", "value": 7.25, "step": 162, "z": 8.06, "recovery_steps": 1, "order": ["a moved"]}
    spike |= {"previews": [{"text": "two\nlines"}], "document_ids": ["x"]}
    assert event_line("spike", spike) == "train/loss 7.2500 at step 162, z 8.1; recovered after 1 step; a moved"
    assert "; not recovered" in event_line("spike", spike | {"recovery_steps": None})
    assert "after 3 steps" in event_line("spike", spike | {"recovery_steps": 3})
    alarm = {"severity": "warn", "change": "raised", "step": 13, "message": "load_cv of layer 1 >= 1", "rule": "x"}
    assert event_line("alarm", alarm) == "warn, raised at step 13: load_cv of layer 1 >= 1"
    assert event_line("command.stop", {"reason": "two\nlines"}) == "reason=two lines"


def trial(**fields: Any) -> TrialRead:
    values: dict[str, Any] = dict.fromkeys(TrialRead.model_fields) | {
        "id": "trl_1", "experiment_id": "exp_1", "number": 3, "kind": "search", "label": None, "batch": None,
        "state": TrialState.QUEUED, "cause": None, "reason": "", "since_ms": 0, "params": {"optimizer.lr": 0.01},
        "objective": None, "objective_tokens": None, "progress": None, "summary": None, "rungs": [], "num_runs": 0,
        "num_retries": 0, "spec_version": 0, "created_at_ms": 0, "started_at_ms": None, "finished_at_ms": None,
    }  # fmt: skip
    return TrialRead(**values | fields)


def test_a_pruned_trial_says_why() -> None:
    why = "rank 3 of 4 at rung 0 with 3.9000; the best 1 go on"
    text = printed(trials_table([trial(state=TrialState.PRUNED, cause=Cause.ASHA, reason=why), trial()]))
    assert why in text
    assert "lr=0.01" in text


def row(**fields: Any) -> ComparisonRow:
    empty = dict.fromkeys(ComparisonRow.model_fields)
    values: dict[str, Any] = {
        **empty, "trial_id": "trl_1", "number": 0, "kind": "search", "state": TrialState.COMPLETED, "reason": "",
        "params": {"optimizer.lr": 0.01}, "differences": [], "violations": [], "domains": [],
    }  # fmt: skip
    return ComparisonRow(**values | fields)


def test_a_comparison_shows_start_and_end_of_every_domain_and_its_control() -> None:
    full = row(
        rank=1,
        objective=2.5,
        difference_to_baseline=-0.125,
        domains=[DomainScore(domain="books", initial=3.94, final=2.5)],
        worst_max_violation=0.75,
        worst_max_violation_layer=3,
        num_spikes=2,
        domain_information=DomainInformation(trained=[0.3], untrained=[0.1], shuffled=[0.01]),
    )
    failed = row(number=1, state=TrialState.FAILED, cause=Cause.DIVERGED)
    text = printed(
        comparison_view(
            Comparison(
                experiment_id="exp_1", objective=Objective(), further_objectives=[], contract="equal training tokens",
                baseline_trial_id=None, domains=["books"], noise=None, rows=[full, failed], points=[],
                caveats=["One seed."],
            )
        )
    )  # fmt: skip
    for said in (
        "-0.1250",
        "2.500 (3.94)",
        "0.75",
        "0.300",
        "0.100",
        "0.010",
        "One seed.",
        "failed",
        "equal training tokens",
    ):
        assert said in text
