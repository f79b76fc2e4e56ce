"""What keeps the documents of a sequence apart: masks, blocks, the memory of the delta rule, the short convolution."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import random_rows
from trainer.attention.delta_rule import chunked_delta_rule, recurrent_delta_rule, unit_length
from trainer.attention.documents import Documents
from trainer.attention.nsa_blocks import blocks_of_documents
from trainer.attention.scaled_dot_product import causal_attention
from trainer.attention.short_convolution import ShortConvolution

FLOAT = torch.float64
lengths_of_documents = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def documents_of(lengths: list[int]) -> Documents:
    """Returns one sequence of documents of these lengths."""
    return Documents(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).unsqueeze(0))


@given(lengths_of_documents)
def test_places_count_from_the_first_position_of_each_document(lengths: list[int]):
    documents = documents_of(lengths)
    assert documents.place_BL[0].tolist() == [place for length in lengths for place in range(length)]
    assert documents.is_first_BL[0].tolist() == [place == 0 for length in lengths for place in range(length)]


def test_numbers_may_begin_anywhere_and_skip():
    documents = Documents(torch.tensor([[3, 3, 7, 8, 8], [0, 0, 0, 0, 5]]))
    assert documents.first_BL.tolist() == [[0, 0, 2, 3, 3], [0, 0, 0, 0, 4]]


@given(lengths=lengths_of_documents, window=st.integers(1, 80), with_sink=st.booleans())
def test_masked_attention_equals_attention_of_each_document(lengths: list[int], window: int, with_sink: bool):
    query, key, value = (random_rows(1, sum(lengths), heads, 4, seed=heads, dtype=FLOAT) for heads in (4, 2, 2))
    sinks_H = random_rows(4, seed=9, dtype=FLOAT) if with_sink else None
    packed = causal_attention(query, key, value, window=window, sinks_H=sinks_H, documents=documents_of(lengths))
    alone = [
        causal_attention(*rows, window=window, sinks_H=sinks_H)
        for rows in zip(*(x.split(lengths, dim=1) for x in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("lengths", [[600], [255, 2, 343], [256, 344], [1] * 257], ids=["one", "over", "at", "many"])
def test_queries_taken_some_at_a_time_see_what_they_see_at_once(lengths: list[int], with_sink: bool):
    query, key, value = (random_rows(1, sum(lengths), heads, 4, seed=heads, dtype=FLOAT) for heads in (2, 1, 1))
    sinks_H = random_rows(2, seed=9, dtype=FLOAT) if with_sink else None
    packed = causal_attention(query, key, value, sinks_H=sinks_H, documents=documents_of(lengths))
    alone = [
        causal_attention(*rows, sinks_H=sinks_H)
        for rows in zip(*(x.split(lengths, dim=1) for x in (query, key, value)), strict=True)
    ]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-12)


@given(lengths=lengths_of_documents, stride=st.integers(1, 4), strides=st.integers(1, 4))
def test_every_whole_block_of_every_document_has_a_slot_of_its_own(lengths: list[int], stride: int, strides: int):
    size = stride * strides
    documents = documents_of(lengths)
    blocks = blocks_of_documents(documents, size=size, stride=stride)
    found = []
    for slot, positions in enumerate(blocks.position_BMl[0].tolist()):
        seen_by = [position for position in range(sum(lengths)) if not blocks.is_hidden[0, 0, position, slot]]
        if seen_by:
            # Seen from its last position to the last of its document.
            end = int(torch.tensor(lengths).cumsum(0)[documents.index_BL[0, positions[0]]])
            assert seen_by == list(range(positions[-1], end))
            found.append((positions[0], int(blocks.block_place[0, 0, slot])))
            assert positions == list(range(positions[0], positions[0] + size))
    firsts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    expected = [
        (first + place, place)
        for first, length in zip(firsts, lengths, strict=False)
        for place in range(0, length - size + 1, stride)
    ]
    assert sorted(found) == expected


def delta_rule_inputs(seq_len: int, *, per_feature: bool, decay: float = 1.0) -> dict[str, torch.Tensor]:
    """Returns 1 sequence, 3 heads of 5 key and 4 value features; `decay` is the mean of -log a."""
    return {
        "query_BLHd": unit_length(random_rows(1, seq_len, 3, 5, seed=0, dtype=FLOAT)),
        "key_BLHd": unit_length(random_rows(1, seq_len, 3, 5, seed=1, dtype=FLOAT)),
        "value_BLHe": random_rows(1, seq_len, 3, 4, seed=2, dtype=FLOAT),
        "log_decay_BLHd": -decay * random_rows(1, seq_len, 3, 5 if per_feature else 1, seed=3, dtype=FLOAT).exp(),
        "strength_BLH": random_rows(1, seq_len, 3, seed=4, dtype=FLOAT).sigmoid(),
    }


@given(lengths=lengths_of_documents, chunk_size=st.integers(1, 20), per_feature=st.booleans())
def test_memory_begins_anew_with_each_document(lengths: list[int], chunk_size: int, per_feature: bool):
    given_inputs = delta_rule_inputs(sum(lengths), per_feature=per_feature)
    parts = [
        recurrent_delta_rule(**dict(zip(given_inputs, rows, strict=True)))
        for rows in zip(*(x.split(lengths, dim=1) for x in given_inputs.values()), strict=True)
    ]
    expected, last_state = torch.cat([out for out, _ in parts], dim=1), parts[-1][1]
    documents = documents_of(lengths)
    for out, state in (
        recurrent_delta_rule(**given_inputs, documents=documents),
        chunked_delta_rule(**given_inputs, chunk_size=chunk_size, documents=documents),
    ):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(state, last_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
@pytest.mark.parametrize("lengths", [[11], [3, 8], [4, 1, 6]], ids=str)
def test_first_document_goes_on_with_the_memory_given(lengths: list[int], per_feature: bool):
    given_inputs = delta_rule_inputs(11, per_feature=per_feature)
    state = random_rows(1, 3, 5, 4, seed=8, dtype=FLOAT)
    first, _ = recurrent_delta_rule(**{name: x[:, : lengths[0]] for name, x in given_inputs.items()}, state_BHde=state)
    documents = documents_of(lengths)
    expected, expected_state = recurrent_delta_rule(**given_inputs, state_BHde=state, documents=documents)
    torch.testing.assert_close(expected[:, : lengths[0]], first, rtol=0, atol=0)
    out, last_state = chunked_delta_rule(**given_inputs, chunk_size=4, state_BHde=state, documents=documents)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last_state, expected_state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_feature", [True, False], ids=["kda", "gdn"])
def test_strong_decay_of_one_document_costs_the_next_no_precision(per_feature: bool):
    given_inputs = delta_rule_inputs(16, per_feature=per_feature, decay=0.01)
    given_inputs["log_decay_BLHd"][:, :8] = -1e8
    documents = documents_of([8, 8])
    expected, _ = recurrent_delta_rule(**given_inputs, documents=documents)
    narrow = {name: value.float().requires_grad_() for name, value in given_inputs.items()}
    out, _ = chunked_delta_rule(**narrow, chunk_size=16, documents=documents)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.sum(), list(narrow.values())))


@given(lengths=lengths_of_documents, width=st.integers(1, 6))
def test_convolution_sees_zeros_before_a_document(lengths: list[int], width: int):
    conv = ShortConvolution(3, width).double()
    conv.weight_C1W.data.copy_(random_rows(3, 1, width, dtype=FLOAT))
    x_BLC = random_rows(1, sum(lengths), 3, seed=1, dtype=FLOAT)
    alone = torch.cat([conv(part) for part in x_BLC.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(conv(x_BLC, documents_of(lengths)), alone, rtol=0, atol=1e-12)
