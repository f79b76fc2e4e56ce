"""The global generators are seeded for a run, restored after it, and resumed exactly."""

import json

import torch

from trainer.random_state import random_state, restore_random_state, seed_everything
from trainer.world import World

CPU = torch.device("cpu")


def test_block_is_seeded_and_leaves_no_trace():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with seed_everything(7, CPU):
        first = torch.rand(3)
    with seed_everything(7, CPU):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_saved_state_continues_the_stream_through_json():
    with seed_everything(7, CPU):
        torch.rand(5)
        saved = json.loads(json.dumps(random_state(World())))
        expected = torch.rand(5)
    with seed_everything(8, CPU):
        restore_random_state(saved, World())
        assert torch.equal(torch.rand(5), expected)


def test_worker_that_was_not_there_keeps_its_seeded_state():
    with seed_everything(7, CPU):
        state = torch.get_rng_state()
        restore_random_state([], World())
        assert torch.equal(torch.get_rng_state(), state)
