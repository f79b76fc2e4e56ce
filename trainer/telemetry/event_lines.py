"""Events of a run, one JSON object per line: appended as they come, cut back to the checkpoint that a run resumes from.

Readers take a line once its newline is there.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.durable import replace_file

Event = dict[str, Any]


class EventLines:
    """A file of events; None writes nothing (workers other than rank 0)."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def append(self, event: Event) -> None:
        """Write one more event at the end."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def keep(self, wanted: Callable[[Event], bool]) -> None:
        """Drop the events that are not `wanted`, and a last line that a kill cut short."""
        if self._path is None or not self._path.exists():
            return
        text = self._path.read_text(encoding="utf-8")
        events = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        replace_file(self._path, "".join(json.dumps(event) + "\n" for event in events if wanted(event)).encode())
