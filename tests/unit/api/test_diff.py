"""Only what differs between configurations, at the place where it does."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.diff import diff


def found(*configs: dict[str, Any]) -> dict[str, list[Any]]:
    return {one.path: one.values for one in diff([str(n) for n in range(len(configs))], configs).differences}


def test_a_changed_value_is_found_by_its_path() -> None:
    a = {"model": {"dim": 8, "moe": {"top_k": 1}}, "seed": 0}
    b = {"model": {"dim": 8, "moe": {"top_k": 2}}, "seed": 0}
    assert found(a, b) == {"model.moe.top_k": [1, 2]}


def test_equal_values_are_counted() -> None:
    assert diff(["a", "b"], [{"x": 1, "y": {"z": 2}}, {"x": 1, "y": {"z": 3}}]).num_equal == 1


def test_a_missing_part_is_one_difference() -> None:
    moe = {"num_experts": 4, "top_k": 2}
    assert found({"moe": None}, {"moe": moe}, {"moe": moe}) == {"moe": [None, moe, moe]}


def test_inside_a_part_that_some_lack_only_the_others_are_compared() -> None:
    one, two = {"num_experts": 4, "top_k": 1}, {"num_experts": 4, "top_k": 2}
    assert found({"moe": None}, {"moe": one}, {"moe": two}) == {
        "moe": [None, one, two],
        "moe.top_k": [None, 1, 2],
    }


def test_components_in_a_list_are_compared_by_place() -> None:
    a = {"balancing": [{"kind": "x", "coefficient": 0.1}]}
    b = {"balancing": [{"kind": "x", "coefficient": 0.2}, {"kind": "z"}]}
    result = diff(["a", "b"], [a, b])
    assert {one.path: (one.values, one.present) for one in result.differences} == {
        "balancing.0.coefficient": ([0.1, 0.2], [True, True]),
        "balancing.1.kind": ([None, "z"], [False, True]),
    }


def test_numbers_of_different_type_differ() -> None:
    assert found({"x": 1}, {"x": True}) == {"x": [1, True]}


LEAVES = st.one_of(st.none(), st.integers(0, 2), st.text("ab", max_size=2), st.lists(st.integers(0, 1), max_size=2))
CONFIGS = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=6),
    max_size=3,
)


@given(CONFIGS, CONFIGS)
def test_there_are_differences_exactly_where_configurations_differ(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert bool(found(a, b)) == (a != b)
    assert not found(a, a, a)
