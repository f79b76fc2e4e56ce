"""The benchmark of histories keeps its form, and a trivial trial keeps to the statements and commits it needs."""

import json

from benchmarks.histories import run


def test_json_names_every_length_and_what_a_trial_takes() -> None:
    report = json.loads(run(lengths=[3], rounds=2, num_played=10).as_json())
    (growth,) = report["growth"]
    assert growth["num_trials"] == 3
    assert min(growth["decide_ms"], growth["begin_ms"], growth["end_ms"]) > 0
    assert set(report["memory_mib"]) == {"1", "5", "10"}
    assert set(report["per_trial"]) == {"statements", "transactions", "cpu_ms", "wall_ms", "fsync_ms"}


def test_a_trivial_trial_is_begun_and_ended_in_a_transaction_each() -> None:
    per_trial = run(lengths=[], num_played=10).per_trial
    assert per_trial["transactions"] == 2
    assert per_trial["statements"] <= 30
