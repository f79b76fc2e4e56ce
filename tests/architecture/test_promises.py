"""The promises of docs/reliability.md are those that tests name."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_is_in_the_names_of_tests_and_every_name_is_a_promise() -> None:
    promised = set(re.findall(r"^\| (I\d+) \|", (ROOT / "docs/reliability.md").read_text(), flags=re.MULTILINE))
    assert promised == {f"I{number}" for number in range(1, 10)}
    named: dict[str, list[str]] = {promise: [] for promise in promised}
    for path in ROOT.glob("tests/**/test_*.py"):
        for name, ids in re.findall(r"^def (test_((?:I\d+_)+)\w*)\(", path.read_text(), flags=re.MULTILINE):
            if name.startswith("test_I1_to_I9_"):
                continue  # all of them at once, which would hide that one has no test of its own
            for promise in ids.rstrip("_").split("_"):
                assert promise in promised, f"{path}: {name}"
                named[promise].append(name)
    assert [promise for promise, names in named.items() if not names] == []
