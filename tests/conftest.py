"""What holds for every test: one Torch thread, the checkout first on child processes' path, no silent skips in CI."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

CHECKOUT = Path(__file__).resolve().parents[1]

# Child processes (workers, servers) import the checkout too, and every trial computes on one thread.
os.environ["PYTHONPATH"] = str(CHECKOUT)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton decides at its first import whether its kernels are interpreted; without a GPU they have to be.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# An own home by default: no test may touch the user's experiments.
os.environ.pop("EVENLOAD_URL", None)
os.environ.pop("EVENLOAD_TOKEN", None)
os.environ.pop("EVENLOAD_DATABASE_URL", None)

# The same examples on every machine, and no verdict by the clock of a busy one.
settings.register_profile("evenload", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("evenload")


@pytest.fixture(autouse=True)
def _no_test_touches_the_users_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points EVENLOAD_HOME at a temporary folder of this test process; its tests share the token cache there."""
    monkeypatch.setenv("EVENLOAD_HOME", str(tmp_path_factory.getbasetemp() / f"home-{os.getpid()}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turns a skip into a failure where everything must run; only a missing GPU is excused."""
    outcome = yield
    report = outcome.get_result()  # pyright: ignore[reportAttributeAccessIssue]  # pluggy's Result, typed as a generator's send
    if report.skipped and os.environ.get("EVENLOAD_TESTS_MUST_RUN") and "gpu" not in item.keywords:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped where every test must run: {reason}"
