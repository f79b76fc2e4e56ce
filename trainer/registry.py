"""Registry: from the `kind` of a component's config to the class that implements it.

A family's `__init__` holds one table, `kind -> "module:Class"`. The module is imported when the component is built, so
listing or validating a spec never imports torch.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

C = TypeVar("C")


class Registry(Mapping[str, type[C]], Generic[C]):
    """Maps a `kind` to its class, imported on first use.

    Args:
        family: the word used in error messages, e.g. "router".
        paths: `kind -> "package.module:ClassName"`.
    """

    def __init__(self, family: str, paths: Mapping[str, str]) -> None:
        self.family = family
        self._paths = dict(paths)

    def __getitem__(self, kind: str) -> type[C]:
        if kind not in self._paths:
            raise KeyError(f"no {self.family} of kind {kind!r}; there are: {', '.join(sorted(self._paths))}")
        module, _, name = self._paths[kind].partition(":")
        component: type[C] = getattr(import_module(module), name)
        return component

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
