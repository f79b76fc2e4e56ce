"""Routers that let tokens compete, and how to say which tokens.

Letters: T tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from trainer.routers.base import LinearRouter


class LookingAheadRouter(LinearRouter):
    """A router that lets the tokens of a group compete, so that a token's experts depend on later tokens too."""

    chunk_size: int | None = None
    """In evaluation, let so many consecutive tokens compete; None: what the router evaluates with by itself."""

    def num_chunks(self, num_tokens: int) -> int | None:
        """Returns into how many chunks `chunk_size` divides `num_tokens`, one if it is larger; None without it.

        Raises:
            ValueError: it is no divisor.
        """
        if self.chunk_size is None:
            return None
        size = min(self.chunk_size, num_tokens)
        if num_tokens % size:
            raise ValueError(f"chunk_size={self.chunk_size} does not divide {num_tokens} tokens; choose a divisor")
        return num_tokens // size


@contextmanager
def routed_over_chunks(model: nn.Module, chunk_size: int | None) -> Iterator[None]:
    """Let so many consecutive tokens compete wherever a model in evaluation looks ahead; None changes nothing."""
    routers = [module for module in model.modules() if isinstance(module, LookingAheadRouter)]
    try:
        for router in routers:
            router.chunk_size = chunk_size
        yield
    finally:
        for router in routers:
            router.chunk_size = None
