"""Who may start next: no over-commitment, whole gangs, priorities, fair shares, no starvation, and why things wait."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.allocation import KINDS, Amounts, Claimant, Need, Verdict, allocate

ONE_NODE: list[Amounts] = [(8.0, 4.0, 16.0)]
SMALL_NODE: list[Amounts] = [(4.0, 4.0, 16.0)]
CPU = Need(cpus=1)
GPU = Need(cpus=1, gpus=1)


def verdicts(nodes: list[Amounts], *claimants: Claimant) -> dict[str, Verdict]:
    return {verdict.id: verdict for verdict in allocate(nodes, claimants)}


def test_everything_starts_while_there_is_room() -> None:
    found = verdicts(ONE_NODE, Claimant(id="a", need=CPU, num_wanted=2), Claimant(id="b", need=GPU, num_wanted=2))
    assert {id: (verdict.num_starts, verdict.reason) for id, verdict in found.items()} == {"a": (2, ""), "b": (2, "")}


def test_gang_that_does_not_fit_waits_as_a_whole_and_says_for_what() -> None:
    small = Claimant(id="small", need=GPU, num_running=2, num_wanted=0)
    large = Claimant(id="large", need=Need(cpus=1, gpus=4))
    assert verdicts(ONE_NODE, small, large)["large"] == Verdict(
        id="large", num_starts=0, reason="needs 4 GPUs on one node, 2 free; next in line"
    )
    workers = Claimant(id="workers", need=Need(num_workers=4, cpus=1, gpus=1))
    assert verdicts(ONE_NODE, small, workers)["workers"].reason == (
        "needs 4 workers of 1 GPU each, room for 2; next in line"
    )


def test_nothing_passes_what_is_first_in_line_with_what_that_is_short_of() -> None:
    running = Claimant(id="old", owner="x", need=GPU, num_running=2, num_wanted=0)
    large = Claimant(id="large", owner="y", need=Need(cpus=1, gpus=4), last_turn=1)
    small = Claimant(id="small", owner="z", need=GPU, last_turn=2)
    on_cpus = Claimant(id="cpus", owner="z", need=CPU, last_turn=3)
    found = verdicts(ONE_NODE, running, large, small, on_cpus)
    assert found["small"].num_starts == 0
    assert found["small"].reason == "needs 1 GPU on one node, which is kept for what is ahead; 1 ahead"
    assert found["cpus"].num_starts == 1, "of the six CPUs that are free, the large one needs one"


def test_higher_priority_comes_first_whoever_holds_more() -> None:
    holder = Claimant(id="holder", owner="x", priority=1, need=CPU, num_running=3, num_wanted=9)
    other = Claimant(id="other", owner="y", need=CPU, num_wanted=9)
    found = verdicts([(4.0, 0.0, 0.0)], holder, other)
    assert (found["holder"].num_starts, found["other"].num_starts) == (1, 0)


def test_owners_get_equal_shares_however_many_experiments_they_have() -> None:
    crowd = [Claimant(id=f"crowd-{index}", owner="crowd", need=CPU, num_wanted=9) for index in range(5)]
    single = Claimant(id="single", owner="single", need=CPU, num_wanted=9, last_turn=9)
    found = verdicts([(6.0, 0.0, 0.0)], *crowd, single)
    assert found["single"].num_starts == 3
    assert sum(found[claimant.id].num_starts for claimant in crowd) == 3


def test_share_is_that_of_the_scarcest_thing() -> None:
    # Two of ten CPUs are less than one of four GPUs: the place goes to who has the CPUs.
    on_cpus = Claimant(id="cpus", owner="x", need=CPU, num_running=2)
    on_gpus = Claimant(id="gpus", owner="y", need=GPU, num_running=1)
    full = Claimant(id="full", owner="z", need=CPU, num_running=6, num_wanted=0)
    found = verdicts([(10.0, 4.0, 0.0)], on_gpus, on_cpus, full)
    assert (found["cpus"].num_starts, found["gpus"].num_starts) == (1, 0)


def test_experiment_at_its_own_limit_waits_for_itself_and_holds_up_nobody() -> None:
    limited = Claimant(id="limited", need=CPU, num_running=2, max_running=2)
    found = verdicts(ONE_NODE, limited, Claimant(id="other", need=CPU))
    assert found["limited"].reason == "2 of at most 2 trials of it are running"
    assert found["other"].num_starts == 1


def test_what_can_never_fit_says_so_and_holds_up_nobody() -> None:
    found = verdicts(ONE_NODE, Claimant(id="huge", need=Need(cpus=1, gpus=5)), Claimant(id="other", need=GPU))
    assert found["huge"].never
    assert found["huge"].reason == (
        "needs 1 CPU and 5 GPUs on one node, and no node has more than 8 CPUs, 4 GPUs, 16 GiB of memory"
    )
    assert found["other"].num_starts == 1


def test_memory_counts_where_it_is_known() -> None:
    claimant = Claimant(id="a", need=Need(cpus=1, memory_gib=6), num_wanted=4)
    assert verdicts(ONE_NODE, claimant)["a"].num_starts == 2
    assert verdicts(ONE_NODE, claimant)["a"].reason == "needs 6 GiB of memory on one node, 4 free; next in line"
    assert verdicts([(4.0, 4.0, 0.0)], claimant)["a"].num_starts == 4


needs = st.builds(
    Need,
    num_workers=st.integers(1, 3),
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    gpus=st.sampled_from([0.0, 0.0, 1.0, 2.0]),
    memory_gib=st.sampled_from([0.0, 1.0, 5.0]),
)
nodes = st.lists(
    st.tuples(st.sampled_from([2.0, 4.0]), st.sampled_from([0.0, 2.0, 4.0]), st.sampled_from([0.0, 8.0])),
    min_size=1,
    max_size=3,
)
claimants = st.lists(
    st.builds(
        Claimant,
        id=st.just(""),
        owner=st.sampled_from("xyz"),
        priority=st.integers(-1, 1),
        need=needs,
        num_wanted=st.integers(0, 5),
        max_running=st.one_of(st.none(), st.integers(1, 3)),
        last_turn=st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
).map(lambda found: [replace(claimant, id=f"exp_{index}") for index, claimant in enumerate(found)])


def held(claimants: list[Claimant]) -> list[float]:
    """What all running trials hold, per kind."""
    return [
        sum(one.num_running * one.need.num_workers * one.need.worker[kind] for one in claimants)
        for kind in range(len(KINDS))
    ]


def after(claimants: list[Claimant], found: dict[str, Verdict]) -> list[Claimant]:
    """The claimants once everything that may start has started."""
    grown = []
    for one in claimants:
        starts = found[one.id].num_starts if one.id in found else 0
        grown.append(replace(one, num_running=one.num_running + starts, num_wanted=one.num_wanted - starts))
    return grown


@given(nodes=nodes, claimants=claimants)
def test_starts_never_take_more_than_there_is_nor_more_than_is_wanted(
    nodes: list[Amounts], claimants: list[Claimant]
) -> None:
    found = verdicts(nodes, *claimants)
    grown = after(claimants, found)
    for kind in range(2):
        assert held(grown)[kind] <= sum(node[kind] for node in nodes) + 1e-6
    for one in grown:
        assert one.num_wanted >= 0
        assert one.max_running is None or one.num_running <= one.max_running
        if one.id in found:
            assert (one.num_wanted == 0) == (found[one.id].reason == "")


@given(nodes=nodes, claimants=claimants, seed=st.integers(0, 99))
def test_verdicts_are_the_same_in_whatever_order_the_rows_come(
    nodes: list[Amounts], claimants: list[Claimant], seed: int
) -> None:
    shuffled = random.Random(seed).sample(claimants, len(claimants))
    assert allocate(nodes, shuffled) == allocate(nodes, claimants)


@settings(max_examples=40)
@given(
    owners=st.tuples(st.sampled_from("xy"), st.sampled_from("xy"), st.sampled_from("xy")),
    gang=st.sampled_from([Need(cpus=4), Need(num_workers=4), Need(cpus=1, gpus=4), Need(num_workers=2, cpus=2)]),
    seed=st.integers(0, 10_000),
)
def test_large_trial_is_never_starved_by_a_stream_of_small_ones(
    owners: tuple[str, str, str], gang: Need, seed: int
) -> None:
    chance = random.Random(seed)
    small = {
        "s1": Claimant(id="s1", owner=owners[0], need=GPU, num_wanted=99, last_turn=0),
        "s2": Claimant(id="s2", owner=owners[1], need=CPU, num_wanted=99, last_turn=1),
    }
    large = Claimant(id="large", owner=owners[2], need=gang, last_turn=2)
    turn = 3
    for _ in range(80):
        # Everybody starts what they may, one of them at a time, in whatever order they come to ask.
        while starters := [
            verdict.id for verdict in allocate(SMALL_NODE, [*small.values(), large]) if verdict.num_starts
        ]:
            if "large" in starters:
                return
            chosen = chance.choice(starters)
            small[chosen] = replace(small[chosen], num_running=small[chosen].num_running + 1, last_turn=turn)
            turn += 1
        running = [id for id, one in small.items() for _ in range(one.num_running)]
        ended = chance.choice(running)
        small[ended] = replace(small[ended], num_running=small[ended].num_running - 1)
    pytest.fail("the large trial did not start though eighty small ones have ended")
