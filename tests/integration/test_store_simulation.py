"""The real store in the simulated world: it keeps I1 to I9, and does in every history what the model of it does."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store.experiments import Experiments
from orchestrator.store.migrate import upgrade
from orchestrator.store.session import Database, open_database
from tests.support.simulation.simulate import MakeStore, simulate
from tests.support.simulation.world import World

DAY_MS = 86_400_000
WORLDS = (1, 2, 3, 8, 13, 22, 42)
"""Batches, stopping, a population, batches of seeds, promotion, brackets, seeds; more in `tests/unit`."""


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """Opens one SQLite file for world after world; leases have the world's clock, the wall clock is never right."""
    url = f"sqlite:///{tmp_path / 'evenload.db'}"
    upgrade(url)
    opened: list[Database] = []

    def make(world: World) -> Database:
        wall = random.Random(world.seed)
        clock = lambda: 1_000_000_000_000 + world.ms + wall.choice((-DAY_MS, 0, DAY_MS))  # noqa: E731
        opened.append(open_database(url, clock=clock, lease_time=world.lease_time))
        return opened[-1]

    yield make
    for database in opened:
        database.close()


def test_I1_to_I9_hold_in_the_store_and_its_histories_are_those_of_the_model(make_store: MakeStore) -> None:
    for seed in WORLDS:
        assert simulate(seed, make_store) == simulate(seed)


def test_I2_checker_objects_to_a_store_without_fences(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Experiments._lock
    monkeypatch.setattr(Experiments, "_lock", lambda self, experiment_id, epoch=None: lock(self, experiment_id))
    # Worlds in which a driver wakes up that was frozen while another one took over.
    found = (violation.invariant for seed in (50, 198, 283) for violation in simulate(seed, make_store).violations)
    assert "I2" in found
