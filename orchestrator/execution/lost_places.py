"""Places that Ray has lost: reserved for a placement group that is gone, and held by nothing.

A placement group whose job ends while its bundles are being prepared is removed, but what was prepared for it is not
given back (ray-project/ray#64693; with Ray 2.60 a driver killed in its first second is enough). No actor, task or group
holds it then, and a trial that needs all of a node waits for ever. Only a new head gives it back. So a driver that
finds such a loss leaves a note, and the daemon starts its head anew when no driver is connected to it.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import home as layout

_KINDS = ("CPU", "GPU")
_HOLD_NOTHING = ("PENDING", "REMOVED")
_DUST = 1e-6
_SETTLED = ("CREATED", "REMOVED")
_INTERVAL_S = 1.0
_ON_ITS_WAY_S = 0.3

Loss = dict[str, tuple[float, float]]
"""Kind -> (how much of it is lost, how much the cluster has); {} if nothing is lost."""


def loss(total: Mapping[str, float], available: Mapping[str, float], groups: Mapping[str, Any]) -> Loss:
    """What is neither free nor held by a placement group.

    All that evenload runs is in placement groups. On a cluster that others use, too, theirs may not be.

    Args:
        total, available: as `ray.cluster_resources()` and `ray.available_resources()` give them.
        groups: as `ray.util.placement_group_table()` gives them.
    """
    found: Loss = {}
    for kind in _KINDS:
        held = sum(
            bundle.get(kind, 0.0)
            for group in groups.values()
            if group["state"] not in _HOLD_NOTHING
            for bundle in group["bundles"].values()
        )
        lost = total.get(kind, 0.0) - available.get(kind, 0.0) - held
        if lost > _DUST:
            found[kind] = (lost, total[kind])
    return found


def lasting_loss(patience_s: float) -> Loss:
    """What is lost now and still is when `patience_s` are over; {} as soon as nothing is. Needs a connected Ray.

    Ray gives back what an ended job held within moments, and takes what a new one needs before it says so.
    """
    import ray
    from ray.util import placement_group_table

    deadline = time.monotonic() + patience_s
    while True:
        found = loss(ray.cluster_resources(), ray.available_resources(), placement_group_table())
        if not found or time.monotonic() >= deadline:
            return found
        time.sleep(_INTERVAL_S)


def settle_groups(patience_s: float = 5.0) -> None:
    """Waits, at an orderly end, until nothing is being prepared for this driver any more. Needs a connected Ray.

    A pause may come right after a run has asked for its place: ending then is what loses it.
    """
    import ray
    from ray.util import placement_group_table

    # The id of a group ends with that of its job. What Tune has just given up may still be on its way to a node.
    job = ray.get_runtime_context().get_job_id()
    deadline = time.monotonic() + patience_s
    time.sleep(_ON_ITS_WAY_S)
    while time.monotonic() < deadline and any(
        group["state"] not in _SETTLED and id.endswith(job) for id, group in placement_group_table().items()
    ):
        time.sleep(_ON_ITS_WAY_S)


def in_words(lost: Loss) -> str:
    """What is lost and what comes of it, as the reason of what waits."""
    amounts = " and ".join(f"{amount:g} of {total:g} {kind}s" for kind, (amount, total) in lost.items())
    return f"Ray has lost {amounts}; its head is started anew when nothing runs on it"


def leave_note(root: Path, *, address: str, lost: Loss) -> None:
    """Tells the daemon that the head at `address` has to be started anew."""
    path = _note(root)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the head may be another home's
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({"address": address, "lost": lost}), encoding="utf-8")
    unfinished.replace(path)


def is_noted(root: Path, *, address: str) -> bool:
    """Whether there is a note about the head at `address`; one about an earlier head does not count."""
    try:
        return json.loads(_note(root).read_text(encoding="utf-8"))["address"] == address
    except FileNotFoundError:
        return False


def _note(root: Path) -> Path:
    return layout.ray_folder(root) / "lost-places.json"
