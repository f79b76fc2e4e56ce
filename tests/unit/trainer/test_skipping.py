"""Steps without an update: which they are, and that nothing but the data moves on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.models import CPU, random_rows
from tests.support.training import STEP_TOKENS, Finished, run_training, train_config
from trainer.checkpoint_manifest import checkpoint_folder
from trainer.config import TrainConfig
from trainer.config.optimizers import AdamWConfig
from trainer.config.spike_policies import SkipSpikesConfig
from trainer.metrics.spikes import SpikeDetector
from trainer.model.build import build_model
from trainer.optimizers.build import build_optimizer
from trainer.optimizers.grouped import undone_where
from trainer.skipping import SpikeSkipper, step_where_not

EAGER = {"num_sigmas": 0.5, "window": 6, "min_window": 3}
"""Skips about a third of all steps."""


def decisions(config: SkipSpikesConfig, losses: list[float], grad_norms: list[float]) -> list[bool]:
    skipper = SpikeSkipper(config)
    return [
        bool(skipper.observe(torch.tensor(loss), torch.tensor(norm)))
        for loss, norm in zip(losses, grad_norms, strict=True)
    ]


@pytest.mark.parametrize("config", [SkipSpikesConfig(), SkipSpikesConfig(num_sigmas=2.0, window=10, min_window=4)])
def test_steps_skipped_are_those_the_spike_detector_names(config: SkipSpikesConfig) -> None:
    series = (random_rows(2, 300).abs() + 1.0).float()
    series[0, [70, 200]] += 30.0
    series[1, [120, 203]] += 30.0
    losses, grad_norms = series.tolist()
    detectors = [
        SpikeDetector(window=config.window, min_window=config.min_window, threshold=config.num_sigmas) for _ in range(2)
    ]
    expected = [
        any([detectors[0].update(loss) is not None, detectors[1].update(norm) is not None])
        for loss, norm in zip(losses, grad_norms, strict=True)
    ]
    found = decisions(config, losses, grad_norms)
    assert found == expected
    assert all(found[step] for step in (70, 120, 200, 203))


def test_lasting_change_of_level_is_followed() -> None:
    config = SkipSpikesConfig(num_sigmas=6.0, window=16, min_window=8)
    noise = (random_rows(60) * 0.1).tolist()
    losses = [2.0 + x for x in noise[:30]] + [4.0 + x for x in noise[30:]]
    found = decisions(config, losses, [1.0] * 60)
    assert found[30]
    assert not any(found[34:])


def test_drop_is_no_spike() -> None:
    config = SkipSpikesConfig(num_sigmas=3.0, window=8, min_window=4)
    assert not any(decisions(config, [2.0, 2.1, 1.9, 2.0, 2.1, 0.1], [1.0] * 6))


def test_window_that_never_fills_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_window=64 exceeds window=32"):
        SkipSpikesConfig(window=32)


class _NoHostRead(TorchDispatchMode):
    """Fails where a value is read on the host, which on a GPU would wait for everything queued before it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert "_local_scalar_dense" not in str(func), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_skipping_on_a_device_reads_nothing_on_the_host() -> None:
    config = train_config().model
    model = build_model(config, seed=0, device=CPU)
    optimizer = build_optimizer(AdamWConfig(lr=0.1), model)
    skipper = SpikeSkipper(SkipSpikesConfig(window=4, min_window=2))
    with _NoHostRead():
        for scale in (0.1, 0.1, 0.1, 100.0):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, scale)
            skipped = skipper.observe(torch.tensor(2.0), torch.tensor(scale))
            before = [parameter.detach().clone() for parameter in model.parameters()]
            step_where_not(skipped, optimizer)
    assert skipped
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.parametrize("skipped", [True, False])
def test_undone_where_puts_back_only_what_was_skipped(skipped: bool) -> None:
    values = random_rows(3, 2)
    before = values.clone()
    with undone_where(torch.tensor(skipped), [values]):
        values += torch.nan
    assert torch.equal(values, before) == skipped


def eager_config(**loop: object) -> TrainConfig:
    return train_config(
        num_steps=14,
        schedule={"kind": "constant", "warmup_fraction": 0.0},
        loop={"skip_spikes": EAGER, "clipping": {"kind": "zclip", "warmup_steps": 2}} | loop,
    )


def state_at(folder: Path, step: int) -> dict[str, Tensor]:
    """Returns every tensor of the checkpoint of this step."""
    path = checkpoint_folder(folder, step)
    return load_file(path / "model.safetensors") | load_file(path / "optimizer.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_training(eager_config(checkpoint_every_tokens=STEP_TOKENS), tmp_path_factory.mktemp("whole"))


def test_skipped_steps_are_recorded_and_counted(whole: Finished) -> None:
    scalars = whole.table("scalars")
    expected = decisions(
        SkipSpikesConfig.model_validate(EAGER),
        scalars["train/loss"].to_pylist(),
        scalars["optimizer/grad_norm"].to_pylist(),
    )
    assert scalars["train/skipped_step"].to_pylist() == expected
    assert whole.last.summary is not None
    assert 2 <= sum(expected) == whole.last.summary.num_skipped_steps < 10


def test_skipped_step_changes_nothing_but_the_window_and_any_other_changes_all(whole: Finished) -> None:
    skipped = np.array(whole.table("scalars")["train/skipped_step"].to_pylist(), dtype=bool)
    for step in range(2, 15):
        before, after = state_at(whole.folder, step - 1), state_at(whole.folder, step)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        window = {"update.skipper.num_steps", "update.skipper.window_2W"}
        if skipped[step - 1]:
            assert changed == window
        else:
            assert {"embedding.weight", "embedding.weight/exp_avg", "update.clipper.mean"} | window <= changed
            assert any(name.endswith("selection_bias_E") for name in changed)


def test_run_stopped_and_resumed_from_its_checkpoint_is_bit_equal(tmp_path: Path, whole: Finished) -> None:
    stopped = run_training(eager_config(checkpoint_every_tokens=STEP_TOKENS), tmp_path, stop_at_tokens=7 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(
        eager_config(checkpoint_every_tokens=STEP_TOKENS), tmp_path, resume_from=stopped.last.checkpoint.folder
    )
    for mine, theirs in ((resumed.weights(), whole.weights()), (resumed.optimizer(), whole.optimizer())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    assert resumed.last.summary is not None
    assert whole.last.summary is not None
    assert resumed.last.summary.num_skipped_steps == whole.last.summary.num_skipped_steps


def test_without_spikes_nothing_differs_from_a_run_that_skips_none(tmp_path: Path) -> None:
    ends = [
        run_training(train_config(num_steps=6, loop={"skip_spikes": skip}), tmp_path / str(number)).weights()
        for number, skip in enumerate((None, {}))
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
