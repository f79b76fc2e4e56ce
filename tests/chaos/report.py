"""What a chaos run did and found; the file that runs are appended to, and the table of docs/reliability.md."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")


@dataclass(kw_only=True)
class Report:
    """One run.

    Attributes:
        kills: by kind of process, how many were killed.
        counts: what was there to be lost.
        problems: everything that must not have happened.
    """

    kills: dict[str, int]
    duration_s: float
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def keep(self, **about: Any) -> None:
        """Appends the run to the results."""
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**about, **asdict(self), "duration_s": round(self.duration_s)}) + "\n")
