"""Which implementation runs, and what is said about it."""

import importlib.util
import logging

import pytest
import torch

from kernels import BackendUnavailable, dispatch, permute, route


def choose(requested: str, *, device: str = "cpu", fast_refuses: str | None = None) -> str:
    return dispatch.choose_backend(
        requested,
        op="test_op",
        device=torch.device(device),
        implemented=("reference", "torch", "triton"),
        fast_refuses=fast_refuses,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_the_torch_path(device: str) -> None:
    assert choose("auto", device=device) == "torch"


def test_auto_is_the_reference_where_the_torch_path_cannot_go() -> None:
    assert choose("auto", fast_refuses="dtype float64") == "reference"
    assert choose("reference", fast_refuses="dtype float64") == "reference"


@pytest.mark.parametrize("requested", ["torch", "triton"])
def test_an_impossible_request_fails_instead_of_falling_back(requested: str) -> None:
    with pytest.raises(ValueError, match=f"backend='{requested}' of test_op cannot be used: dtype float64"):
        choose(requested, fast_refuses="dtype float64")


def test_unknown_and_unimplemented_backends_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"backend='cuda' is not available for route; choose one of \('auto', 'reference'"
    ):
        route(torch.zeros(2, 3), top_k=1, normalize=True, backend="cuda")
    routing = route(torch.zeros(2, 3), top_k=1, normalize=True)
    with pytest.raises(ValueError, match=r"backend='triton' is not available for permute"):
        permute(torch.zeros(2, 4), routing, backend="triton")


def test_triton_without_a_device_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs triton (pip install triton)")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailable, match="cannot run on the CPU; choose 'torch', or set TRITON_INTERPRET=1"):
        choose("triton")


def test_triton_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="needs the triton package, which is not installed"):
        choose("triton", device="cuda")


def test_each_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        for _ in range(3):
            choose("auto")
            choose("auto", fast_refuses="dim=5 must be a multiple of 4")
    assert [(record.levelname, record.__dict__["backend"]) for record in caplog.records] == [
        ("INFO", "torch"),
        ("WARNING", "reference"),
    ]
    assert "dim=5 must be a multiple of 4" in caplog.text
