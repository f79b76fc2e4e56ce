"""Routers: which experts a token goes to, and with which weights."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.routers.base import Router

ROUTERS: Registry["Router"] = Registry(
    "router",
    {
        "expert_choice": "trainer.routers.expert_choice:ExpertChoiceRouter",
        "group_limited": "trainer.routers.group_limited:GroupLimitedRouter",
        "hash": "trainer.routers.hash:HashRouter",
        "random": "trainer.routers.random:RandomRouter",
        "sinkhorn": "trainer.routers.sinkhorn:SinkhornRouter",
        "top_k": "trainer.routers.top_k:TopKRouter",
    },
)
"""`kind` of a RouterConfig -> its class."""

__all__ = ["ROUTERS"]
