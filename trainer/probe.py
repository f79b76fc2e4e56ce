"""The routing of a fixed set of held-out tokens, measured at every evaluation and compared over a run.

Letters: B sequences, L positions, W windows, T tokens, M mixture-of-experts layers, E experts.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import TrainConfig
from trainer.config.run import SaturationPoint
from trainer.data.evaluation import EvaluationSet
from trainer.metrics.catalog import PROBE_SCALARS
from trainer.metrics.router_health import max_violation
from trainer.metrics.routing_probe import (
    MIN_OCCURRENCES,
    changed,
    largest_coactivation,
    overlap,
    shuffled_specialization,
    specialization,
)
from trainer.metrics.specialization import mutual_information
from trainer.model.routing import LayerRouting
from trainer.model.transformer import Transformer
from trainer.precision.base import Precision
from trainer.routers.looking_ahead import routed_over_chunks

MAX_ROUTINGS = 8
"""Routings kept for comparing with the last one."""


def thinned_out(steps: Sequence[int]) -> list[int]:
    """Return which of ascending steps to keep: all up to `MAX_ROUTINGS`, else all but one.

    That is the one whose neighbours lie nearest to each other, neither the first nor the last: taken again with every
    step that is added, those kept are spread over the run.
    """
    if len(steps) <= MAX_ROUTINGS:
        return list(steps)
    dropped = min(range(1, len(steps) - 1), key=lambda index: steps[index + 1] - steps[index - 1])
    return [*steps[:dropped], *steps[dropped + 1 :]]


class RoutingProbe:
    """Routes the same held-out tokens again and again.

    Every corpus has equally many windows. Experts that choose among the tokens of a sequence choose here among those
    of a micro-batch that mixes the corpora, as in `trainer.specialization`.

    Args:
        config: of the run; a dense model and `loop.probe_tokens: 0` measure nothing.
        sets: held-out windows, one set per corpus.
    """

    def __init__(self, config: TrainConfig, sets: Sequence[EvaluationSet]) -> None:
        self._config = config
        seq_len = config.data.seq_len
        wanted = max(1, config.loop.probe_tokens // (seq_len * len(sets)))
        num_windows = min(wanted, *(len(held_out.inputs_NL) for held_out in sets))
        self._windows_WL = np.stack([held_out.inputs_NL[:num_windows] for held_out in sets], axis=1).reshape(
            -1, seq_len
        )
        documents = [held_out.documents_NL[:num_windows] for held_out in sets if held_out.documents_NL is not None]
        self._documents_WL = np.stack(documents, axis=1).reshape(-1, seq_len) if documents else None
        self._domain_W = np.tile(np.arange(len(sets)), num_windows)
        self._routings: dict[int, NDArray[np.bool_]] = {}
        self._newest: int | None = None
        self._first_MT: NDArray[np.int64] | None = None
        """The first expert of each token at the newest evaluation; None before any."""

    @property
    def is_on(self) -> bool:
        """Whether there is anything to measure."""
        return self._config.model.moe is not None and self._config.loop.probe_tokens > 0

    def measure(self, model: Transformer, *, precision: Precision, step: int) -> dict[str, NDArray[np.float64]]:
        """Return the `probe/` metrics of a model at a step, name -> float64 [M]; churn is NaN the first time."""
        moe = self._config.model.moe
        assert moe is not None, "a dense model is not probed"
        chosen_MTE, first_MT = self._route(model, precision)
        before = None if self._newest is None else self._routings[self._newest]
        first_before, self._first_MT = self._first_MT, first_MT
        self._routings[step], self._newest = chosen_MTE, step
        self._routings = {kept: self._routings[kept] for kept in thinned_out(list(self._routings))}
        label_T = np.repeat(self._domain_W, self._config.data.seq_len)
        token_T = self._windows_WL.flatten()
        seed = self._config.seed
        rows = []
        for layer, chosen_TE in enumerate(chosen_MTE):
            per_token = chosen_TE.sum() / len(chosen_TE)
            even = per_token / moe.num_experts
            counts_DE = np.stack([chosen_TE[label_T == domain].sum(axis=0) for domain in np.unique(label_T)])
            rows.append(
                {
                    "probe/churn": float("nan") if before is None else 1.0 - overlap(chosen_TE, before[layer]),
                    "probe/churn_uniform": 1.0 - even,
                    "probe/top1_churn": (
                        float("nan") if first_before is None else changed(first_MT[layer], first_before[layer])
                    ),
                    "probe/top1_churn_uniform": 1.0 - 1.0 / moe.num_experts,
                    "probe/max_violation": float(max_violation(chosen_TE.sum(axis=0))),
                    "probe/domain_information": mutual_information(counts_DE),
                    "probe/domain_specialization": specialization(chosen_TE, label_T),
                    "probe/domain_specialization_shuffled": shuffled_specialization(
                        chosen_TE, self._domain_W, seed=seed
                    ),
                    "probe/vocabulary_specialization": specialization(chosen_TE, token_T, min_tokens=MIN_OCCURRENCES),
                    "probe/vocabulary_specialization_shuffled": shuffled_specialization(
                        chosen_TE, token_T, seed=seed, min_tokens=MIN_OCCURRENCES
                    ),
                    "probe/specialization_uniform": even,
                    "probe/coactivation": largest_coactivation(chosen_TE),
                    "probe/coactivation_uniform": max(0.0, per_token - 1.0) / (moe.num_experts - 1),
                }
            )
        return {name: np.array([row[name] for row in rows]) for name in PROBE_SCALARS}

    def saturation(self) -> tuple[SaturationPoint, ...]:
        """Return how much of each kept routing is that of the newest one, oldest first; () before any."""
        if self._newest is None:
            return ()
        last = self._routings[self._newest]
        return tuple(
            SaturationPoint(
                step=step,
                tokens=step * self._config.step_tokens,
                by_layer=[overlap(chosen_TE, last_TE) for chosen_TE, last_TE in zip(routing, last, strict=True)],
            )
            for step, routing in sorted(self._routings.items())
        )

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "newest": self._newest,
            "first_experts": None
            if self._first_MT is None
            else {"shape": list(self._first_MT.shape), "bytes": _packed(self._first_MT.astype("<i4"))},
            "routings": {
                str(step): {"shape": list(routing.shape), "bits": _packed(np.packbits(routing))}
                for step, routing in self._routings.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._newest = state["newest"]
        # Checkpoints of earlier versions have none: the next evaluation then has nothing to compare with.
        first = state.get("first_experts")
        self._first_MT = (
            None if first is None else _unpacked(first["bytes"], "<i4").reshape(first["shape"]).astype(np.int64)
        )
        self._routings = {}
        for step, packed in state["routings"].items():
            shape = tuple(packed["shape"])
            bits = np.unpackbits(_unpacked(packed["bits"], "u1"), count=int(np.prod(shape)))
            self._routings[int(step)] = bits.reshape(shape).astype(bool)

    @torch.no_grad()
    def _route(self, model: Transformer, precision: Precision) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return who chooses whom, [M, T, E], and whom first, [M, T]; the model is left in training mode."""
        moe = self._config.model.moe
        assert moe is not None
        device = next(model.parameters()).device
        batch_size = self._config.loop.micro_batch_size
        chunk_size = batch_size * self._config.data.seq_len if moe.router.evaluates_ahead else None
        parts, firsts = [], []
        model.eval()
        with routed_over_chunks(model, chunk_size), precision.autocast():
            for first in range(0, len(self._windows_WL), batch_size):
                taken = slice(first, first + batch_size)
                tokens_BL = torch.from_numpy(self._windows_WL[taken]).to(device)
                documents_WL = self._documents_WL
                documents_BL = None if documents_WL is None else torch.from_numpy(documents_WL[taken]).to(device)
                _, routings = model.trunk(tokens_BL, documents_BL)
                chosen_MTE = torch.stack([routing.assignments_TE() for routing in routings])
                parts.append(chosen_MTE[..., : moe.num_experts].cpu())
                firsts.append(torch.stack([_first_experts(routing) for routing in routings]).cpu())
        model.train()
        return torch.cat(parts, dim=1).numpy(), torch.cat(firsts, dim=1).numpy()


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes())).decode()


def _unpacked(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def _first_experts(routing: LayerRouting) -> Tensor:
    """Return the best expert of each token, int64 [T]: of those it chose, or, where experts choose, of all."""
    if routing.token_ids_N is None:
        return routing.expert_ids_N.view(routing.num_tokens, -1)[:, 0]
    return routing.logits_TE.argmax(dim=1)
