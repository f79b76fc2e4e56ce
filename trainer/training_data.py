"""What a run reads: the mixture it trains on, the windows it is evaluated on, and a fingerprint of both."""

from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.evaluation import EvaluationSet, evaluation_windows
from trainer.data.manifest import data_fingerprint
from trainer.data.mixture import Mixture
from trainer.data.shards import ensure_shard
from trainer.data.tokenizer import Tokenizer, load_tokenizer
from trainer.telemetry.spike_events import MAX_DOCUMENT_IDS, Preview, Samples

NUM_PREVIEWS, PREVIEW_TOKENS, PREVIEW_LENGTH = 8, 48, 160
"""Samples of a step whose text is shown, the tokens read of each, and the most characters."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The data of one run.

    Attributes:
        mixture: its training samples.
        evaluation_sets: held-out windows, one set per corpus, in the order of `mixture.domains`.
        fingerprint: equal fingerprints promise equal samples.
        global_batch_size: samples per step.
        tokenizer: of all of them.
    """

    mixture: Mixture
    evaluation_sets: tuple[EvaluationSet, ...]
    fingerprint: str
    global_batch_size: int
    tokenizer: Tokenizer

    def samples_of_step(self, step: int) -> Samples:
        """Return which samples the update number `step` (1-based) was trained on."""
        first = (step - 1) * self.global_batch_size
        last = first + self.global_batch_size - 1
        domain_of: dict[str, int] = {}
        for index in range(first, last + 1):
            window = self.mixture.window(index)
            domain_of.update(dict.fromkeys(window.document_ids, window.domain_index))
            if len(domain_of) > MAX_DOCUMENT_IDS:
                break
        named = list(domain_of)[:MAX_DOCUMENT_IDS]
        return Samples(
            first=first,
            last=last,
            document_ids=named,
            previews=tuple(self._preview(index) for index in range(first, min(last + 1, first + NUM_PREVIEWS))),
            document_chances=tuple(
                self.mixture.chance_of_document(domain_of[name], name, self.global_batch_size) for name in named
            ),
            all_documents=len(domain_of) <= MAX_DOCUMENT_IDS,
            num_documents=self.mixture.num_documents,
        )

    def _preview(self, index: int) -> Preview:
        window = self.mixture.window(index)
        text = self.tokenizer.decode(window.tokens[:PREVIEW_TOKENS].tolist())
        return Preview(index, window.document_ids, text[:PREVIEW_LENGTH])


def open_data(config: TrainConfig, *, cache_folder: Path) -> TrainingData:
    """Open the data of a run, tokenising it into `cache_folder` where it is not there yet.

    Raises:
        DataInvalid: a corpus or tokenizer is missing or altered.
        ValueError: a corpus is too short for `data.seq_len`.
    """
    data = config.data
    shards = [ensure_shard(name, "train", data.tokenizer, cache_folder) for name in data.mixture]
    held_out = [ensure_shard(name, "validation", data.tokenizer, cache_folder) for name in sorted(data.mixture)]
    mixture = Mixture(
        shards,
        weights=data.mixture,
        seq_len=data.seq_len,
        seed=config.seed,
        document_masking=data.document_masking,
    )
    return TrainingData(
        mixture=mixture,
        evaluation_sets=tuple(
            evaluation_windows(shard, data.seq_len, data.evaluation_tokens, document_masking=data.document_masking)
            for shard in held_out
        ),
        fingerprint=data_fingerprint(
            weights=data.mixture,
            tokenizer_fingerprint=shards[0].tokenizer_fingerprint,
            seq_len=data.seq_len,
            seed=config.seed,
        ),
        global_batch_size=config.loop.global_batch_size,
        tokenizer=load_tokenizer(data.tokenizer),
    )
