"""The stream of samples is a function of the index alone: resumable, and the same at any world size."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.token_shards import counting_shard, token_shard
from trainer.data.documents import documents_of_window
from trainer.data.mixture import Mixture
from trainer.data.shards import TokenShard

SIZES = {"books": 103, "docs": 58, "legal": 211}
WEIGHTS = {"books": 2.0, "docs": 1.0, "legal": 3.0}
SEQ_LEN = 8


def shards() -> list[TokenShard]:
    return [counting_shard(name, size) for name, size in SIZES.items()]


def mixture(
    *, seed: int = 5, weights: dict[str, float] = WEIGHTS, seq_len: int = SEQ_LEN, document_masking: bool = False
) -> Mixture:
    return Mixture(
        [shard for shard in shards() if shard.corpus in weights],
        weights=weights,
        seq_len=seq_len,
        seed=seed,
        document_masking=document_masking,
    )


@given(seed=st.integers(0, 2**63), seq_len=st.integers(1, 40), num_epochs=st.integers(1, 3))
def test_every_window_is_visited_once_per_epoch(seed: int, seq_len: int, num_epochs: int):
    stream = mixture(seed=seed, weights={"docs": 1.0}, seq_len=seq_len)
    num_windows = (SIZES["docs"] - 1) // seq_len
    for epoch in range(num_epochs):
        windows = [stream.window(epoch * num_windows + number) for number in range(num_windows)]
        assert {window.epoch for window in windows} == {epoch}
        assert sorted(window.start for window in windows) == [number * seq_len for number in range(num_windows)]


def test_every_token_but_the_first_is_a_target_once_per_epoch():
    stream = mixture(weights={"docs": 1.0}, seq_len=3)
    targets = np.concatenate([stream.window(index).tokens[1:] for index in range(19)])
    assert sorted(targets) == list(range(1, 58))


def test_epochs_and_seeds_have_their_own_order():
    def starts(seed: int, epoch: int) -> list[int]:
        stream = mixture(seed=seed, weights={"legal": 1.0})
        return [stream.window(epoch * 26 + number).start for number in range(26)]

    orders = [starts(0, 0), starts(0, 1), starts(1, 0), starts(1, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_order_within_a_domain_does_not_depend_on_the_other_domains():
    alone = [mixture(weights={"docs": 1.0}).window(index).start for index in range(7)]
    windows = (mixture().window(index) for index in range(42))
    assert [window.start for window in windows if window.domain == "docs"] == alone


@given(index=st.integers(0, 10_000), others=st.lists(st.integers(0, 10_000), max_size=5), seed=st.integers(0, 2**32))
def test_window_is_a_pure_function_of_the_index(index: int, others: list[int], seed: int):
    visited = mixture(seed=seed)
    for other in others:
        visited.window(other)
    found, fresh = visited.window(index), mixture(seed=seed).window(index)
    assert found._replace(tokens=fresh.tokens) == fresh
    assert np.array_equal(found.tokens, fresh.tokens)


def test_domains_keep_their_weights_in_every_prefix():
    stream, counts = mixture(), Counter()
    for index in range(600):
        counts[stream.window(index).domain] += 1
        for domain, weight in WEIGHTS.items():
            assert abs(counts[domain] - weight / 6 * (index + 1)) < 1


@given(step=st.integers(0, 500), world_size=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_ranks_together_read_the_batch_of_one_rank(step: int, world_size: int):
    stream = mixture(document_masking=True)
    whole = stream.batch(step, 12)
    parts = [stream.batch(step, 12, rank, world_size) for rank in range(world_size)]
    for name in whole._fields:
        together = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(together, getattr(whole, name)), name


def test_batch_holds_the_windows_of_its_indices_shifted_by_one():
    stream = mixture()
    batch = stream.batch(7, 6)
    assert batch.sample_indices_B.tolist() == list(range(42, 48))
    for row, index in enumerate(batch.sample_indices_B.tolist()):
        window = stream.window(index)
        assert np.array_equal(batch.inputs_BL[row], window.tokens[:-1])
        assert np.array_equal(batch.targets_BL[row], window.tokens[1:])
        assert stream.domains[batch.domain_ids_B[row]] == window.domain


def test_batch_is_int64_of_the_documented_shape():
    batch = mixture(document_masking=True).batch(0, 6, 1, 2)
    assert batch.inputs_BL.shape == batch.targets_BL.shape == batch.documents_BL.shape == (3, SEQ_LEN)
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}


def test_resuming_at_a_step_reads_what_an_uninterrupted_run_reads():
    uninterrupted = mixture()
    expected = [uninterrupted.batch(step, 4) for step in range(60)]
    resumed = mixture()
    for step in range(23, 60):
        batch = resumed.batch(step, 4)
        for name in batch._fields:
            assert np.array_equal(getattr(batch, name), getattr(expected[step], name)), name


def test_window_names_the_documents_it_touches():
    # A null byte is one token: documents start at 1, 10 and 19, and the last target of the first window is token 10.
    shard = token_shard("books", ["\x00" * 8] * 3)
    stream = Mixture([shard], weights={"books": 1.0}, seq_len=10, seed=0)
    touched = {window.start: window.document_ids for window in map(stream.window, range(shard.num_windows(10)))}
    assert touched == {0: ("books-0", "books-1"), 10: ("books-1", "books-2")}


def test_chance_of_a_document_is_the_share_of_batches_that_touch_it():
    shard = token_shard("books", ["\x00" * 40, "\x00" * 8, "\x00" * 31])
    stream = Mixture(
        [shard, counting_shard("legal", 211)], weights={"books": 1.0, "legal": 1.0}, seq_len=SEQ_LEN, seed=0
    )
    num_windows = shard.num_windows(SEQ_LEN)
    one_epoch = [stream.window(index).document_ids for index in range(2 * num_windows)]  # of books; every other sample
    for name in shard.document_ids:
        share = sum(name in names for names in one_epoch) / len(one_epoch)
        assert stream.chance_of_document(0, name, 1) == pytest.approx(share)
        assert stream.chance_of_document(0, name, 5) == pytest.approx(1 - (1 - share) ** 5)
    assert stream.num_documents == 3 + len(counting_shard("legal", 211).document_ids)


def test_batch_numbers_the_documents_of_a_window_from_their_end_of_text_token_on():
    # Tokens: end-of-text at 0, 9, 18 and 27, a null byte everywhere else.
    shard = token_shard("books", ["\x00" * 8] * 3)
    stream = Mixture([shard], weights={"books": 1.0}, seq_len=10, seed=0, document_masking=True)
    batch = stream.batch(0, 2)
    numbers = {stream.window(index).start: row.tolist() for index, row in enumerate(batch.documents_BL)}
    assert numbers == {0: [0] * 9 + [1], 10: [0] * 8 + [1] * 2}


def test_masking_changes_no_token():
    masked, plain = mixture(document_masking=True).batch(3, 6), mixture().batch(3, 6)
    assert plain.documents_BL is None
    for name in ("inputs_BL", "targets_BL", "domain_ids_B", "sample_indices_B"):
        assert np.array_equal(getattr(masked, name), getattr(plain, name))


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=20), data=st.data())
def test_document_numbers_rise_by_one_at_each_end_of_text_token(sizes: list[int], data: st.DataObject):
    shard = token_shard("books", ["\x00" * size for size in sizes])
    start = data.draw(st.integers(0, shard.num_tokens - 2))
    seq_len = data.draw(st.integers(1, shard.num_tokens - 1 - start))
    is_separator = shard.tokens[start : start + seq_len] == shard.tokens[0]
    expected = np.cumsum(is_separator)
    assert documents_of_window(shard, start, seq_len).tolist() == (expected - expected[0]).tolist()


@pytest.mark.parametrize(
    ("global_batch_size", "rank", "world_size"), [(4, 0, 3), (0, 0, 1), (4, 2, 2), (4, -1, 2), (4, 0, 0)]
)
def test_impossible_share_of_a_batch_is_refused(global_batch_size: int, rank: int, world_size: int):
    with pytest.raises(ValueError, match="rank"):
        mixture().batch(0, global_batch_size, rank, world_size)


def test_weights_for_other_domains_than_the_shards_are_refused():
    with pytest.raises(ValueError, match="legal"):
        Mixture(shards(), weights={"books": 1.0, "docs": 1.0}, seq_len=SEQ_LEN, seed=0)


def test_sequence_longer_than_a_shard_is_refused():
    with pytest.raises(ValueError, match="docs/train has 58"):
        mixture(seq_len=58)


def test_order_of_samples_is_the_one_of_earlier_releases():
    """Checkpoints hold an index: an update of NumPy, or of us, that changes the order would resume into other data."""
    found = [(window.domain, window.start) for window in map(mixture().window, range(8))]
    assert found == [
        ("legal", 24),
        ("books", 8),
        ("legal", 16),
        ("docs", 16),
        ("books", 56),
        ("legal", 200),
        ("legal", 72),
        ("books", 0),
    ]
