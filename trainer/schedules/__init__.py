"""Learning-rate schedules."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.schedules.base import Schedule

SCHEDULES: Registry["Schedule"] = Registry(
    "schedule",
    {
        "constant": "trainer.schedules.constant:ConstantSchedule",
        "cosine": "trainer.schedules.cosine:CosineSchedule",
        "inverse_sqrt": "trainer.schedules.inverse_sqrt:InverseSqrtSchedule",
        "wsd": "trainer.schedules.wsd:WarmupStableDecaySchedule",
    },
)
"""`kind` of a ScheduleConfig -> its class."""

__all__ = ["SCHEDULES"]
