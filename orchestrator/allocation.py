"""Who may start a trial next, over all experiments: a pure function of what is there, what runs and what waits.

Places go to the higher priority first; among equals to the owner who holds the smallest share of the cluster, then to
the experiment that does, then to the one whose last turn is the longest ago. A share is that of the scarcest thing held
(dominant resource fairness: Ghodsi et al. 2011). A trial starts with all its workers or not at all.

What is first in line and does not fit holds a reservation: nobody behind it gets anything of what it is short of, nor
what it needs of the rest, so that small trials never starve a large one. The remainder goes on to the others: trials on
CPUs run past one that waits for GPUs. An experiment of which nothing runs and that has been passed over many times
comes first among those of its priority, whatever else its owner holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

KINDS = ("cpus", "gpus", "memory_gib")
"""What a worker takes of its node."""

_DUST = 1e-9
"""A third of a CPU three times is one CPU."""
_PATIENCE = 16
"""Trials that start elsewhere, per experiment there is, until one that has nothing running comes first."""
_MAX_STARTS = 10_000
"""Starts that are thought through at a time; more than any cluster we know has places."""

Amounts = tuple[float, float, float]
"""One number per kind, in the order of KINDS."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one trial takes: `num_workers` workers, each on one node, of these amounts each."""

    num_workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float = 0.0

    @property
    def worker(self) -> Amounts:
        """Of one worker."""
        return (self.cpus, self.gpus, self.memory_gib)


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """An experiment that holds places, wants some, or both.

    Attributes:
        id: of the experiment.
        owner: who shares the cluster with the other owners.
        priority: higher ones come first.
        need: of each of its trials.
        num_running: trials that hold their places now.
        num_wanted: trials that it would start if it could.
        max_running: the most that it may have running; None: no limit of its own.
        last_turn: counts up over all experiments with every trial that starts; what was submitted later than another
            one's last turn has a higher number.
    """

    id: str
    owner: str = "local"
    priority: int = 0
    need: Need = Need()
    num_running: int = 0
    num_wanted: int = 1
    max_running: int | None = None
    last_turn: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What becomes of a claimant that wants places.

    Attributes:
        id: of the experiment.
        num_starts: trials that it may start now.
        num_ahead: experiments that come before it and wait for places, too.
        never: its trials do not fit even into an empty cluster.
        reason: why no more of them start, in words; "" if all that it wants may.
    """

    id: str
    num_starts: int
    num_ahead: int = 0
    never: bool = False
    reason: str = ""


def allocate(nodes: Sequence[Amounts], claimants: Sequence[Claimant]) -> tuple[Verdict, ...]:
    """What each claimant that wants places may do now, in the order in which places are given out.

    Which worker is on which node is not known here: they are put on the first node with room, larger ones first. On one
    node that is exact; on several, Ray may have placed them otherwise, and what is let start may then wait for a moment
    until Ray finds room.

    Args:
        nodes: what each node of the cluster has, free or not. Memory of 0 is taken as unknown, and as enough.
        claimants: each experiment once, in any order.
    """
    whole = [(cpus, gpus, memory or float("inf")) for cpus, gpus, memory in nodes]
    total = [sum(amounts) for amounts in zip(*nodes, strict=True)] or [0.0] * len(KINDS)
    free = _without(whole, claimants)
    num_running = {claimant.id: claimant.num_running for claimant in claimants}
    pending = [claimant for claimant in claimants if claimant.num_wanted > 0]
    last_turn = {claimant.id: claimant.last_turn for claimant in claimants}
    next_turn = max(last_turn.values(), default=0) + 1
    starts = {claimant.id: 0 for claimant in pending}
    verdicts: dict[str, Verdict] = {}
    closed: set[str] = set()
    waiting: list[str] = []

    def close(claimant: Claimant, reason: str, *, waits: bool = False, never: bool = False) -> None:
        pending.remove(claimant)
        ahead = len(waiting)
        if waits:
            waiting.append(claimant.id)
            reason += f"; {ahead} ahead" if ahead else "; next in line"
        verdicts[claimant.id] = Verdict(
            id=claimant.id, num_starts=starts[claimant.id], num_ahead=ahead, never=never, reason=reason
        )

    while pending:
        shares = _shares(claimants, num_running, total)
        overdue = {
            one.id
            for one in pending
            if not num_running[one.id] and next_turn - last_turn[one.id] > _PATIENCE * len(claimants)
        }
        claimant = min(
            pending,
            key=lambda one: (-one.priority, one.id not in overdue, *shares[one.id], last_turn[one.id], one.id),
        )
        worker = claimant.need.worker
        if claimant.max_running is not None and num_running[claimant.id] >= claimant.max_running:
            close(claimant, f"{num_running[claimant.id]} of at most {claimant.max_running} trials of it are running")
        elif _placed(whole, claimant.need) is None:
            close(claimant, _never(claimant.need, nodes), never=True)
        elif kept := [kind for kind, amount in zip(KINDS, worker, strict=True) if amount > 0 and kind in closed]:
            words = _short(claimant.need, free) or f"{_needs(claimant.need, kept)}, which is kept for what is ahead"
            close(claimant, words, waits=True)
        elif (after := _placed(free, claimant.need)) is not None:
            free = after
            num_running[claimant.id] += 1
            last_turn[claimant.id], next_turn = next_turn, next_turn + 1
            starts[claimant.id] += 1
            if starts[claimant.id] >= claimant.num_wanted or sum(starts.values()) >= _MAX_STARTS:
                close(claimant, "")
        else:
            words = _short(claimant.need, free) or f"{_needs(claimant.need)}, which is free, but not together"
            close(claimant, words, waits=True)
            free, short = _reserved(free, claimant.need)
            closed |= short
    return tuple(verdicts.values())


def _shares(
    claimants: Sequence[Claimant], num_running: Mapping[str, int], total: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Experiment -> the share of the cluster that its owner holds, and that it holds itself."""
    held: dict[str, list[float]] = {}
    own: dict[str, list[float]] = {}
    for claimant in claimants:
        workers = num_running[claimant.id] * claimant.need.num_workers
        own[claimant.id] = [workers * amount for amount in claimant.need.worker]
        before = held.get(claimant.owner, [0.0] * len(KINDS))
        held[claimant.owner] = [a + b for a, b in zip(before, own[claimant.id], strict=True)]
    return {
        claimant.id: (_dominant(held[claimant.owner], total), _dominant(own[claimant.id], total))
        for claimant in claimants
    }


def _dominant(amounts: Sequence[float], total: Sequence[float]) -> float:
    # Rounded, so that shares that are equal but for the order of a sum are equal.
    return round(max((part / whole for part, whole in zip(amounts, total, strict=True) if whole > 0), default=0.0), 9)


def _without(nodes: Sequence[Amounts], claimants: Sequence[Claimant]) -> list[Amounts]:
    """What is left free of the nodes beside everything that runs."""
    free = list(nodes)
    for claimant in sorted(claimants, key=lambda one: (one.need.worker, one.id), reverse=True):
        for _ in range(claimant.num_running * claimant.need.num_workers):
            worker = claimant.need.worker
            room = [index for index, node in enumerate(free) if _fits(worker, node)]
            if not room and not free:
                continue
            # Where it really is does not agree with where we put the others: whichever node is the emptiest.
            index = room[0] if room else max(range(len(free)), key=lambda at: free[at])
            free[index] = _minus(free[index], worker)
    return free


def _placed(free: Sequence[Amounts], need: Need) -> list[Amounts] | None:
    """What is left free once a trial has started; None if not all its workers fit."""
    left = list(free)
    num_unplaced = need.num_workers
    for index, node in enumerate(left):
        while num_unplaced and _fits(need.worker, node):
            node = _minus(node, need.worker)
            num_unplaced -= 1
        left[index] = node
        if not num_unplaced:
            return left
    return None


def _reserved(free: Sequence[Amounts], need: Need) -> tuple[list[Amounts], set[str]]:
    """What is left for others while a trial waits, and the kinds of which they get nothing: those it is short of."""
    short = _short_kinds(need, free) or {kind for kind, amount in zip(KINDS, need.worker, strict=True) if amount > 0}
    left = _placed(free, replace(need, **dict.fromkeys(short, 0.0)))
    if left is None:  # each kind alone would do, but not at the same nodes
        return list(free), set(KINDS)
    return left, short


def _short_kinds(need: Need, free: Sequence[Amounts]) -> set[str]:
    """The kinds of which there is too little for all workers, each looked at alone."""
    short: set[str] = set()
    for position, kind in enumerate(KINDS):
        amount = need.worker[position]
        if amount > 0:
            room = sum(int(max(0.0, node[position]) / amount + _DUST) for node in free if node[position] < float("inf"))
            if room < need.num_workers and all(node[position] < float("inf") for node in free):
                short.add(kind)
    return short


def _fits(worker: Amounts, node: Amounts) -> bool:
    return all(amount <= left + _DUST for amount, left in zip(worker, node, strict=True))


def _minus(node: Amounts, worker: Amounts) -> Amounts:
    cpus, gpus, memory = (left - amount for left, amount in zip(node, worker, strict=True))
    return cpus, gpus, memory


_ONE = {"cpus": "CPU", "gpus": "GPU"}


def _amount(kind: str, amount: float) -> str:
    if kind == "memory_gib":
        return f"{amount:.3g} GiB of memory"
    return f"{amount:g} {_ONE[kind]}{'' if amount == 1 else 's'}"


def _needs(need: Need, kinds: Sequence[str] = KINDS) -> str:
    amounts = {kind: amount for kind, amount in zip(KINDS, need.worker, strict=True) if kind in kinds and amount > 0}
    words = " and ".join(_amount(kind, amount) for kind, amount in amounts.items())
    if need.num_workers == 1:
        return f"needs {words} on one node"
    return f"needs {need.num_workers} workers of {words} each"


def _short(need: Need, free: Sequence[Amounts]) -> str:
    """What is missing, in words; "" if nothing is."""
    short = [kind for kind in KINDS if kind in _short_kinds(need, free)]
    if not short:
        return ""
    if need.num_workers > 1:
        room = need.num_workers
        for kind in short:
            position = KINDS.index(kind)
            by_kind = sum(int(max(0.0, node[position]) / need.worker[position] + _DUST) for node in free)
            room = min(room, by_kind)
        return f"{_needs(need, short)}, room for {room}"
    most = {kind: max(0.0, max(node[KINDS.index(kind)] for node in free)) for kind in short}
    left = " and ".join(
        f"{most[kind]:.3g}" if len(short) == 1 else _amount(kind, round(most[kind], 3)) for kind in short
    )
    return f"{_needs(need, short)}, {left} free"


def _never(need: Need, nodes: Sequence[Amounts]) -> str:
    largest = [max((node[position] for node in nodes), default=0.0) for position in range(len(KINDS))]
    words = ", ".join(_amount(kind, amount) for kind, amount in zip(KINDS, largest, strict=True) if amount > 0)
    return f"{_needs(need)}, and no node has more than {words or 'nothing'}"
