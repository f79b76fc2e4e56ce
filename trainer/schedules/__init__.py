"""Learning-rate schedules."""

from typing import TYPE_CHECKING

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.schedules.base import Schedule

SCHEDULES: Registry["Schedule"] = Registry(
    "schedule",
    {
        "cosine": "trainer.schedules.cosine:CosineSchedule",
        "wsd": "trainer.schedules.wsd:WarmupStableDecaySchedule",
    },
)
"""`kind` of a ScheduleConfig -> its class."""

__all__ = ["SCHEDULES"]
