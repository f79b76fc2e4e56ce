"""Starts: where the weights of a run come from."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.start.base import Start

STARTS: Registry["Start"] = Registry(
    "start",
    {
        "checkpoint": "trainer.start.same_model:SameModel",
        "fork": "trainer.start.fork:Fork",
        "hugging_face": "trainer.start.same_model:SameModel",
        "scratch": "trainer.start.scratch:Scratch",
        "upcycle": "trainer.start.upcycle:Upcycle",
    },
)
"""`kind` of a StartConfig -> its class."""

__all__ = ["STARTS"]
