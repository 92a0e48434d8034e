"""PyTorch's element types in the one table of them all. Knows PyTorch's names, which are those of the table."""

from __future__ import annotations

import onnx_ir as ir
import torch

from titans_format.dtypes import BY_NAME, ElementType


def element_type(dtype: torch.dtype) -> ElementType:
    """How everybody else spells a dtype. Raises `KeyError` for one that no bundle has."""
    return BY_NAME[str(dtype).removeprefix("torch.")]


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's spelling. Raises `KeyError` for a dtype that no bundle has."""
    return ir.DataType(element_type(dtype).onnx)
