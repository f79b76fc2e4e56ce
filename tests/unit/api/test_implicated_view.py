"""What the terminal says of documents in the spikes of several trials."""

from typing import Any

from rich.console import Console

from api.implicated import implicated_view
from api.schemas.implicated import ImplicatedDocuments


def answer(**fields: Any) -> ImplicatedDocuments:
    return ImplicatedDocuments.model_validate(
        {
            "experiment_id": "ex_1",
            "everywhere": False,
            "min_trials": 2,
            "num_trials": 6,
            "num_spiking_trials": 3,
            "num_spikes": 4,
            "num_batches": 2,
            "num_orders": 1,
            "num_truncated": 0,
            "note": None,
            "items": [],
        }
        | fields
    )


def item(*document_ids: str) -> dict[str, Any]:
    unknown = {"chance_of_batch": None, "expected_trials": None, "probability": None, "probability_any": None}
    spike = {"experiment_id": "ex_1", "trial_id": "t", "run_id": "r", "metrics": ["train/loss"], "z": 9.0, "size": 1.0}
    return {
        "documents": [{"document_id": name} | unknown for name in document_ids],
        "num_trials": 2,
        "num_spikes": 2,
        "num_batches": 1,
        "same_batch": True,
        "expected_batches": 0.01,
        "spikes": [spike | {"trial_number": number, "step": 70, "sample_indices": [552, 559]} for number in (0, 3)],
        "text": "Section 7.\n  Of chance",
        "summary": "It was so.",
    }


def shown(found: ImplicatedDocuments) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(implicated_view(found))
    return [line.strip() for line in capture.get().splitlines() if line.strip()]


def test_nothing_in_common_is_said_with_how_much_was_looked_at():
    lines = shown(answer())
    assert lines == [
        "4 spikes in 3 of 6 trials of this experiment",
        "No document was in spikes of 2 trials or more.",
    ]


def test_item_is_a_sentence_its_spikes_its_documents_and_a_text():
    lines = shown(answer(items=[item("a", "b")], note="They share an order.", num_truncated=1))
    assert lines == [
        "4 spikes in 3 of 6 trials of this experiment",
        "They share an order.",
        "of 1 batches not all documents were recorded",
        "It was so.",
        "trial 0 step 70, trial 3 step 70",
        "a, b",
        "Section 7. Of chance",
    ]


def test_many_documents_are_counted_and_experiments_named_where_there_are_several():
    lines = shown(answer(items=[item(*"abcdefgh")], everywhere=True))
    assert lines[0].endswith("of all experiments")
    assert "ex_1 trial 0 step 70, ex_1 trial 3 step 70" in lines
    assert "a, b, c, d, e, 3 more" in lines
