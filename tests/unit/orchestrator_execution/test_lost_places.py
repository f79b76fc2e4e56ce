"""What Ray has lost is what is neither free nor held by a placement group."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import home as layout
from orchestrator.execution.lost_places import Loss, in_words, is_noted, leave_note, loss


def group(state: str, *bundles: dict[str, float]) -> dict[str, Any]:
    return {"state": state, "bundles": dict(enumerate(bundles))}


ONE_CPU = {"CPU": 1.0}


@pytest.mark.parametrize(
    ("available", "groups", "expected"),
    [
        ({"CPU": 2.0, "GPU": 1.0}, [], {}),
        ({"GPU": 1.0}, [group("CREATED", ONE_CPU, ONE_CPU)], {}),
        ({"CPU": 1.0, "GPU": 1.0}, [group("CREATED", ONE_CPU), group("PENDING", ONE_CPU, ONE_CPU)], {}),
        ({"CPU": 1.0, "GPU": 1.0}, [group("REMOVED", ONE_CPU)], {"CPU": (1.0, 2.0)}),
        ({"CPU": 1.0, "GPU": 1.0}, [group("PENDING", ONE_CPU, ONE_CPU)], {"CPU": (1.0, 2.0)}),
        ({"CPU": 1.0}, [group("CREATED", ONE_CPU)], {"GPU": (1.0, 1.0)}),
        ({"CPU": 2.0, "GPU": 1.0}, [group("CREATED", {"memory": 1.0})], {}),
    ],
    ids=["idle", "all held", "one waits", "removed", "waits for what is lost", "a GPU", "takes no place"],
)
def test_lost_is_what_nothing_holds(available: dict[str, float], groups: list[dict[str, Any]], expected: Loss) -> None:
    total = {"CPU": 2.0, "GPU": 1.0, "memory": 1e9}
    assert loss(total, available, {str(number): one for number, one in enumerate(groups)}) == expected


def test_thirds_that_add_up_leave_no_dust() -> None:
    third = group("CREATED", *({"CPU": 1 / 3} for _ in range(3)))
    assert loss({"CPU": 1.0}, {}, {"a": third}) == {}


def test_note_is_about_one_head(tmp_path: Path) -> None:
    layout.ray_folder(tmp_path).mkdir()
    assert not is_noted(tmp_path, address="192.0.2.1:1")
    leave_note(tmp_path, address="192.0.2.1:1", lost={"CPU": (1.0, 2.0)})
    assert is_noted(tmp_path, address="192.0.2.1:1")
    assert not is_noted(tmp_path, address="192.0.2.1:2")


def test_reason_says_how_much_and_what_comes_of_it() -> None:
    said = in_words({"CPU": (1.0, 2.0), "GPU": (0.5, 1.0)})
    assert said == "Ray has lost 1 of 2 CPUs and 0.5 of 1 GPUs; its head is started anew when nothing runs on it"
