"""The stream of training samples: a weighted mixture of token shards whose whole state is one integer.

That is the index of the next sample: sample i is a pure function of (shards, weights, seq_len, seed, i). Resuming means
starting at another index; data parallelism means that each rank computes its own slice of the same global batch.
Shapes: B sequences, L positions.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.data.documents import documents_of_window
from trainer.data.schedule import DomainSchedule
from trainer.data.shards import TokenShard


class Window(NamedTuple):
    """One sample and where it comes from."""

    tokens: NDArray[np.int64]
    """Shape [seq_len + 1]: the inputs are all but the last, the targets all but the first."""
    domain: str
    domain_index: int
    """Index into `Mixture.domains`."""
    epoch: int
    """How many times the domain had been seen in full before."""
    document_ids: tuple[str, ...]
    """The documents that the window touches, in their order."""
    start: int
    """Position of the first token in the domain's shard."""


class Batch(NamedTuple):
    """Samples of one step, or one rank's share of them."""

    inputs_BL: NDArray[np.int64]
    targets_BL: NDArray[np.int64]
    domain_ids_B: NDArray[np.int64]
    """Indices into `Mixture.domains`."""
    sample_indices_B: NDArray[np.int64]
    documents_BL: NDArray[np.int64] | None
    """Number of each input's document within its window (`trainer.data.documents`); None without document masking."""


class Mixture:
    """Samples of `seq_len` targets from several corpora in fixed proportion.

    Which domain sample i comes from is scheduled, see `DomainSchedule`. Within a domain the windows are visited in a
    shuffled order without replacement, in a new order each epoch; orders depend on the seed and the domain's name, not
    on the other domains.

    Args:
        shards: one per domain, all of the same tokenizer. Their order does not matter.
        weights: a positive number per domain, in any unit.
        seq_len: number of targets of a sample.
        seed: not negative.
        document_masking: whether batches say which document a position belongs to.

    Raises:
        ValueError: shards and weights name different domains, or a shard is shorter than one window.
    """

    def __init__(
        self,
        shards: Sequence[TokenShard],
        *,
        weights: Mapping[str, float],
        seq_len: int,
        seed: int,
        document_masking: bool = False,
    ) -> None:
        by_name = {shard.corpus: shard for shard in shards}
        if len(by_name) != len(shards) or by_name.keys() != weights.keys():
            raise ValueError(f"shards of {sorted(shard.corpus for shard in shards)} for weights of {sorted(weights)}")
        if len({shard.tokenizer_fingerprint for shard in shards}) > 1:
            raise ValueError("the shards of a mixture must be of the same tokenizer")
        if seed < 0:
            raise ValueError(f"seed={seed} is negative")
        self._schedule = DomainSchedule(weights)
        self.domains = self._schedule.domains
        """Names of the corpora, sorted."""
        self.seq_len = seq_len
        self.seed = seed
        self.document_masking = document_masking
        self._shards = [by_name[domain] for domain in self.domains]
        self._num_windows = [shard.num_windows(seq_len) for shard in self._shards]
        # Of each domain only the order of the epoch used last; recomputing one is a matter of milliseconds.
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    @property
    def shares(self) -> Mapping[str, float]:
        """The fraction of samples of each domain that the mixture keeps to: its weight, to 1/10,000 of the whole."""
        return self._schedule.shares

    def window(self, index: int) -> Window:
        """Return sample `index`; indices never run out, since a domain that was seen in full starts its next epoch."""
        domain, epoch, start = self._locate(index)
        shard = self._shards[domain]
        return Window(
            tokens=self._tokens(domain, start),
            domain=self.domains[domain],
            domain_index=domain,
            epoch=epoch,
            document_ids=shard.documents_between(start, start + self.seq_len + 1),
            start=start,
        )

    @property
    def num_documents(self) -> int:
        """Documents of all domains."""
        return sum(len(shard.document_ids) for shard in self._shards)

    def chance_of_document(self, domain_index: int, document_id: str, num_samples: int) -> float:
        """Return the chance that at least one of `num_samples` samples drawn at random touches a document.

        Args:
            domain_index: its domain's.
            document_id: of one of that domain's documents.
            num_samples: drawn with replacement, each from a domain by its share.
        """
        num_touching = self._shards[domain_index].num_windows_touching(document_id, self.seq_len)
        share = self.shares[self.domains[domain_index]] * num_touching / self._num_windows[domain_index]
        return 1.0 - (1.0 - share) ** num_samples

    def batch(self, step: int, global_batch_size: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Return the share of `rank` in the batch of `step` (from 0): a slice of its `global_batch_size` samples.

        The slices of all ranks, in order, are the batch of a single rank, whatever the world size.

        Raises:
            ValueError: the batch cannot be divided equally, or there is no such rank or step.
        """
        if global_batch_size < 1 or world_size < 1 or global_batch_size % world_size:
            raise ValueError(
                f"a batch of {global_batch_size} samples cannot be divided equally over {world_size} ranks"
            )
        if not 0 <= rank < world_size or step < 0:
            raise ValueError(f"no rank {rank} of {world_size} at step {step}")
        local_batch_size = global_batch_size // world_size
        first = step * global_batch_size + rank * local_batch_size
        indices_B = np.arange(first, first + local_batch_size, dtype=np.int64)
        places = [self._locate(index) for index in indices_B.tolist()]
        tokens = np.stack([self._tokens(domain, start) for domain, _, start in places])
        return Batch(
            inputs_BL=np.ascontiguousarray(tokens[:, :-1]),
            targets_BL=np.ascontiguousarray(tokens[:, 1:]),
            domain_ids_B=np.array([domain for domain, _, _ in places], dtype=np.int64),
            sample_indices_B=indices_B,
            documents_BL=self._documents(places) if self.document_masking else None,
        )

    def _locate(self, index: int) -> tuple[int, int, int]:
        """Return the domain, epoch and first token of sample `index`."""
        domain, visit = self._schedule.locate(index)
        epoch, position = divmod(visit, self._num_windows[domain])
        return domain, epoch, int(self._order(domain, epoch)[position]) * self.seq_len

    def _order(self, domain: int, epoch: int) -> NDArray[np.int64]:
        cached = self._orders.get(domain)
        if cached is not None and cached[0] == epoch:
            return cached[1]
        name_key = int.from_bytes(hashlib.sha256(self.domains[domain].encode()).digest()[:8], "big")
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, name_key, epoch]))
        # Sorting raw bits, and not Generator.permutation: NumPy promises the stream of a bit generator across versions,
        # but not what its Generator makes of it (NEP 19).
        order = np.argsort(bits.random_raw(self._num_windows[domain]), kind="stable")
        self._orders[domain] = (epoch, order)
        return order

    def _documents(self, places: Sequence[tuple[int, int, int]]) -> NDArray[np.int64]:
        return np.stack([documents_of_window(self._shards[domain], start, self.seq_len) for domain, _, start in places])

    def _tokens(self, domain: int, start: int) -> NDArray[np.int64]:
        return self._shards[domain].tokens[start : start + self.seq_len + 1].astype(np.int64)
