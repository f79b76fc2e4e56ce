"""Reads a spec from a YAML or JSON file.

YAML as people expect it: `3e-4` is a number (YAML 1.2; PyYAML's own rule makes it text), a key given twice is an error,
and aliases are off, since a few of them can stand for gigabytes.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import EvenloadError

MAX_BYTES = 2 * 1024 * 1024


class DocumentUnreadable(EvenloadError):
    """A file is not a document that could be submitted."""


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# A class attribute of SafeLoader is shared; the copy keeps the change to this loader.
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_document(path: Path) -> Any:
    """The plain value in a `.yaml`, `.yml` or `.json` file; raises DocumentUnreadable with the line that is wrong."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DocumentUnreadable(f"{path} has {size:,} bytes; a spec has at most {MAX_BYTES:,}")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentUnreadable(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise DocumentUnreadable(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise DocumentUnreadable(f"{path} is nested too deeply") from error
