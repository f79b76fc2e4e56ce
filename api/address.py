"""Where the server of a home folder listens, so that clients with the same home find it by themselves."""

import json
import os
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8080"


def _file(root: Path) -> Path:
    return root / "server.json"


def publish_address(root: Path, url: str) -> None:
    """Notes the address of the server of the home `root`."""
    unfinished = _file(root).with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
    unfinished.replace(_file(root))


def known_address(root: Path) -> str | None:
    """The address last noted for the home `root`, or None. Whether anything listens there is another question."""
    try:
        url = json.loads(_file(root).read_text())["url"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return str(url)
