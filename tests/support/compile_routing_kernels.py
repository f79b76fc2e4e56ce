"""Compiles the routing kernels to CUDA machine code without a GPU: `python -m tests.support.compile_routing_kernels`.

Has to run in a process of its own, without TRITON_INTERPRET: Triton decides at import whether kernels are interpreted.
Prints one line of JSON per kernel.
"""

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.route import STAT_NAMES, fused

HOPPER = GPUTarget("cuda", 90, 32)
NUM_TOKENS, NUM_EXPERTS, TOP_K = 8, 12, 3  # small tiles compile fast
POINTERS = {
    "logits_ptr": "*bf16",
    "dlogits_ptr": "*bf16",
    "ids_ptr": "*i64",
    "rank_ptr": "*i32",
    "counts_ptr": "*i32",
}
SCALARS = {"num_tokens": "i32", "scale": "fp32"}


def compile_kernel(kernel: triton.JITFunction, constants: dict[str, object]) -> dict[str, object]:
    """Returns the kernel's name and the size of its machine code; pointers not listed above are to float32."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {
        name: "constexpr" if name in constants else SCALARS.get(name) or POINTERS.get(name, "*fp32")
        for name in kernel.arg_names
    }
    compiled = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=constants), target=HOPPER)
    return {"kernel": kernel.__name__, "sigmoid": constants["SIGMOID"], "cubin_bytes": len(compiled.asm["cubin"])}


def main() -> None:
    """Compiles both kernels for both scores."""
    for sigmoid in (False, True):
        constants = {
            "NUM_EXPERTS": NUM_EXPERTS,
            "TOP_K": TOP_K,
            "NUM_SLOTS": len(STAT_NAMES),
            "SIGMOID": sigmoid,
            "NORMALIZE": sigmoid,
            "HAS_BIAS": sigmoid,
            "BLOCK_T": fused._tile(NUM_TOKENS, NUM_EXPERTS),
            "BLOCK_E": triton.next_power_of_2(NUM_EXPERTS),
            "BLOCK_K": triton.next_power_of_2(TOP_K),
        }
        for kernel in (fused._route_forward, fused._route_backward):
            sys.stdout.write(json.dumps(compile_kernel(kernel, constants)) + "\n")


if __name__ == "__main__":
    main()
