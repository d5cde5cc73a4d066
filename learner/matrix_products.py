"""Which library multiplies float32 matrices on the CPU.

Torch gives float32 products to MKL, which uses AVX2 on processors of other makers than its own. oneDNN, which is in
the same build, has AVX-512 kernels for all of them and takes these products once bfloat16 is *permitted*; without
matrix units for bfloat16 (AMX) it still computes in float32. Measured on an AMD EPYC with AVX-512, one thread,
256x256x256: 96 GFLOP/s by MKL, 206 by oneDNN, with the same error against float64.
"""

from __future__ import annotations

from typing import Any

import torch

_PROBE_SIZES = ((256, 69, 256), (1024, 256, 256))
_FLOAT32_ERROR = 2e-6
"""Largest error of a float32 product of these sizes, relative to the sum of the absolute products."""


def prefer_onednn() -> bool:
    """Let oneDNN take float32 products if it computes them in float32 here; a property of the machine, not of time.

    Returns:
        Whether it does now. Where it would round to bfloat16, MKL stays.
    """
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return False
    matmul = getattr(mkldnn, "matmul", None)
    if matmul is None:  # torch before 2.9 cannot be told
        return False
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    if all(_is_float32(*sizes) for sizes in _PROBE_SIZES):
        return True
    matmul.fp32_precision = before
    return False


def _is_float32(rows: int, inner: int, columns: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    exact = left.double() @ right.double()
    scale = left.double().abs() @ right.double().abs()
    for product in (left @ right, torch.baddbmm(torch.zeros(1, 1, 1), left[None], right[None])[0]):
        if ((product - exact).abs() / scale).max() > _FLOAT32_ERROR:
            return False
    return True
