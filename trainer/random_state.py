"""The global random number generators: seeded for a run, put back afterwards, and saved in checkpoints.

Weights draw from generators of their own and batches are found by index. What does draw from the global generators
(random routing, the stochastic rounding of `nvfp4`) is resumed exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch

from trainer.world import World


class RandomState(TypedDict):
    """Generator states of one worker as hexadecimal strings; `cuda` is None on the CPU."""

    torch: str
    cuda: str | None


@contextmanager
def seed_everything(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for the block and put their old states back at the end."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def undisturbed_random_state(device: torch.device) -> Iterator[None]:
    """Let the block draw from torch's global generators as what comes after it will: their states are put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def random_state(world: World) -> list[RandomState]:
    """Return the states of every worker's generators, in the order of ranks. Every worker must call it."""
    on_cuda = world.device.type == "cuda"
    torch_states = world.gather(torch.get_rng_state().to(world.device))
    cuda_states = world.gather(torch.cuda.get_rng_state(world.device).to(world.device)) if on_cuda else None
    return [
        RandomState(torch=_hex(state), cuda=None if cuda_states is None else _hex(cuda_states[rank]))
        for rank, state in enumerate(torch_states)
    ]


def restore_random_state(states: Sequence[RandomState], world: World) -> None:
    """Put back this worker's states; a worker that was not there when they were saved keeps its seeded ones."""
    if world.rank >= len(states):
        return
    state = states[world.rank]
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] is not None and world.device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(state["cuda"]), world.device)


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _tensor(state: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(state), dtype=np.uint8).copy())
