"""The Triton kernels compile for every architecture, within its shared memory and registers; no GPU is needed.

Here one configuration of each op and card; `python tests/compile_triton.py` does all of them.
"""

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from compile_triton import CAPABILITIES, CONFIGURED, elementwise, norms_of_grams, products, resources, target

from muon_kernels.backends import configs


@pytest.mark.parametrize("sm", CAPABILITIES)
@pytest.mark.parametrize("op", CONFIGURED)
def test_products_fit(op, sm):
    candidates = [candidate.config for candidate in configs.candidates(CONFIGURED[op], 2, sm)]
    # One with pointers and, where there is one, one with descriptors.
    for config in {bool(config.programs): config for config in reversed(candidates)}.values():
        with target(sm):
            for launch in products(config, torch.float16):
                if launch.kernel.__name__.startswith(op):
                    compiled = launch.compile()
                    assert resources(compiled, sm).fits(sm)
                    assert tensor_core_instruction(sm) in compiled.asm["ptx"]
                    # Operands are fetched ahead, by the block or 16 bytes a thread; results stored 16 bytes a thread.
                    fetch = "cp.async.bulk.tensor" if config.programs else "cp.async.cg.shared.global"
                    assert fetch in compiled.asm["ptx"]
                    assert "st.global.v4.b32" in compiled.asm["ptx"]


def tensor_core_instruction(sm):
    return {90: "wgmma.mma_async", 100: "tcgen05.mma"}.get(sm, "mma.sync.aligned")


@pytest.mark.parametrize("sm", CAPABILITIES)
def test_norms_of_gram_matrices_fit(sm):
    with target(sm):
        wide, mixed = (launch.compile() for launch in norms_of_grams(torch.float16))
        assert all(resources(compiled, sm).fits(sm) for compiled in (wide, mixed))
        assert "ld.global.v4.b32" in wide.asm["ptx"] and "ld.global.v4.b32" not in mixed.asm["ptx"]


@pytest.mark.parametrize("sm", CAPABILITIES)
def test_elementwise_kernels_fit(sm):
    with target(sm):
        for launch in elementwise(torch.float32, count=8):
            compiled = launch.compile()
            assert resources(compiled, sm).fits(sm)
            if launch.kernel.__name__ in ("prologue_kernel", "apply_kernel"):
                assert "ld.global.v4.b32" in compiled.asm["ptx"]
