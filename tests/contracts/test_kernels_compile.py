"""The Triton kernels compile for a GPU, which running them in the interpreter does not show."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_routing_kernels_compile_for_hopper(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs triton (pip install triton)")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_routing_kernels"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(entry["kernel"], entry["sigmoid"]) for entry in compiled] == [
        ("_route_forward", False),
        ("_route_backward", False),
        ("_route_forward", True),
        ("_route_backward", True),
    ]
    assert all(entry["cubin_bytes"] > 1_000 for entry in compiled)
