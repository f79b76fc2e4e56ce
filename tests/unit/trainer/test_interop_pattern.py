"""Patterns of layers: found wherever one says them, and only there."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import model_config, moe_fields
from trainer.interop.pattern import expert_pattern, global_every


@given(num_layers=st.integers(1, 12), num_dense=st.integers(0, 11), every=st.integers(1, 12))
def test_what_a_config_says_is_found(num_layers: int, num_dense: int, every: int) -> None:
    if num_dense + every > num_layers:
        return
    config = model_config(num_layers=num_layers, moe=moe_fields(num_dense_layers=num_dense, every=every))
    found = expert_pattern([kind == "dense" for kind in config.layer_kinds()])
    assert found is not None
    again = model_config(num_layers=num_layers, moe=moe_fields(**found._asdict()))
    assert again.layer_kinds() == config.layer_kinds()


@given(is_dense=st.lists(st.booleans(), min_size=1, max_size=10))
def test_no_pattern_means_that_no_config_says_it(is_dense: list[bool]) -> None:
    num_layers = len(is_dense)
    if expert_pattern(is_dense) is not None:
        return
    for num_dense in range(num_layers):
        for every in range(1, num_layers - num_dense + 1):
            config = model_config(num_layers=num_layers, moe=moe_fields(num_dense_layers=num_dense, every=every))
            assert [kind == "dense" for kind in config.layer_kinds()] != is_dense


@given(num_layers=st.integers(1, 12), every=st.integers(1, 12))
def test_global_layers_are_found(num_layers: int, every: int) -> None:
    full = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    config = model_config(
        num_layers=num_layers, attention={"window": 3}, global_attention={"every": every, "attention": full}
    )
    is_global = [attention.model_dump()["window"] is None for attention in config.layer_attentions()]
    found = global_every(is_global)
    assert found is not None
    assert found <= every
    assert is_global == [layer % found == 0 or layer == num_layers for layer in range(1, num_layers + 1)]


def test_a_last_layer_that_is_not_global_is_no_pattern() -> None:
    assert global_every([False, True, False]) is None
