"""The training clock counts what it should."""

from trainer.metrics.throughput import TrainingClock, tokens_per_s


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_excluded_time_is_not_counted():
    time = Time()
    clock = TrainingClock(now=time)
    time.now_s += 3
    with clock.excluded():
        time.now_s += 50
        assert clock.duration_s == 3
    time.now_s += 2
    assert clock.duration_s == 5


def test_time_before_a_resume_counts_and_time_until_it_does_not():
    time = Time()
    clock = TrainingClock(now=time)
    time.now_s += 10
    clock.resume_from(7.0)
    time.now_s += 1
    assert clock.duration_s == 8


def test_no_time_is_no_speed():
    assert tokens_per_s(100, 0.0) == 0.0
    assert tokens_per_s(100, 4.0) == 25.0
