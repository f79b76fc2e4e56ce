"""Ids and clocks."""

from concurrent.futures import ThreadPoolExecutor

from orchestrator.store.clock import IdSource, host_lease_time, now_ms


def test_ids_are_unique_and_sorted_by_creation_within_one_millisecond() -> None:
    source = IdSource(lambda: 1_700_000_000_000)
    ids = [source.new("trl") for _ in range(1000)]
    assert ids == sorted(set(ids))


def test_ids_stay_sorted_when_the_clock_steps_back() -> None:
    times = iter([2_000_000_000_000, 1_000_000_000_000, 1_000_000_000_001, 2_000_000_000_001])
    source = IdSource(lambda: next(times))
    ids = [source.new("exp") for _ in range(4)]
    assert ids == sorted(set(ids))


def test_ids_of_several_threads_are_unique() -> None:
    source = IdSource()
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: source.new("run"), range(500)))
    assert len(set(ids)) == 500


def test_id_is_prefix_time_and_random_part() -> None:
    first, second = IdSource(lambda: 0), IdSource(lambda: 32**9 - 1)
    assert first.new("chk").startswith("chk_000000000")
    identifier = second.new("chk")
    assert identifier.startswith("chk_zzzzzzzzz")
    assert len(identifier) == len("chk_") + 16


def test_lease_time_goes_forward_under_one_boot() -> None:
    first, second = host_lease_time(), host_lease_time()
    assert first.boot_id == second.boot_id
    assert first.ms <= second.ms


def test_now_is_in_milliseconds() -> None:
    assert 1_700_000_000_000 < now_ms() < 4_000_000_000_000
