"""The faster library is taken only where it computes in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from learner import matrix_products


@pytest.fixture(autouse=True)
def restore_precision() -> Iterator[None]:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    yield
    matmul.fp32_precision = before


def test_products_keep_the_precision_of_float32() -> None:
    matrix_products.prefer_onednn()
    generator = torch.Generator().manual_seed(1)
    for shape in ((256, 69, 256), (128, 256, 30), (7, 256, 1)):
        left = torch.randn(shape[0], shape[1], generator=generator)
        right = torch.randn(shape[1], shape[2], generator=generator)
        exact = left.double() @ right.double()
        scale = left.double().abs() @ right.double().abs()
        assert ((left @ right - exact).abs() / scale).max() < 2e-6


def test_a_torch_that_cannot_be_told_keeps_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(torch.backends.mkldnn), "matmul")  # as before 2.9
    assert not matrix_products.prefer_onednn()


def test_a_machine_that_would_round_keeps_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    # A bound below float32's own error stands for a machine that rounds to bfloat16.
    monkeypatch.setattr(matrix_products, "_FLOAT32_ERROR", 1e-12)
    assert not matrix_products.prefer_onednn()
    assert matmul.fp32_precision == before
