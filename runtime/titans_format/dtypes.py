"""Element types: one table with every spelling, for the formats and libraries that have one of their own.

Knows names and numbers. Imports none of the libraries: who has one looks its own type up by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# What a tensor of a graph or a state may be made of.
DType = Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]
DTYPES: tuple[DType, ...] = get_args(DType)


@dataclass(frozen=True)
class ElementType:
    """One element type.

    name: as a manifest, NumPy and PyTorch spell it.
    bytes: of an element.
    onnx: `onnx.TensorProto.DataType`.
    safetensors: in the header of a safetensors file.
    onnxruntime: in `NodeArg.type`.
    tensorrt: the member of `tensorrt.DataType`; None for what TensorRT has not.
    storage: the type of NumPy's that holds the bits; another than `name` where NumPy lacks the type.
    """

    name: str
    bytes: int
    onnx: int
    safetensors: str
    onnxruntime: str
    tensorrt: str | None
    storage: str


ELEMENT_TYPES = (
    ElementType("float32", 4, 1, "F32", "tensor(float)", "FLOAT", "float32"),
    ElementType("uint8", 1, 2, "U8", "tensor(uint8)", "UINT8", "uint8"),
    ElementType("int8", 1, 3, "I8", "tensor(int8)", "INT8", "int8"),
    ElementType("int32", 4, 6, "I32", "tensor(int32)", "INT32", "int32"),
    ElementType("int64", 8, 7, "I64", "tensor(int64)", "INT64", "int64"),
    ElementType("bool", 1, 9, "BOOL", "tensor(bool)", "BOOL", "bool"),
    ElementType("float16", 2, 10, "F16", "tensor(float16)", "HALF", "float16"),
    ElementType("float64", 8, 11, "F64", "tensor(double)", None, "float64"),
    ElementType("bfloat16", 2, 16, "BF16", "tensor(bfloat16)", "BF16", "uint16"),
)
BY_NAME = {each.name: each for each in ELEMENT_TYPES}
BY_ONNX = {each.onnx: each for each in ELEMENT_TYPES}
BY_SAFETENSORS = {each.safetensors: each for each in ELEMENT_TYPES}
BY_ONNXRUNTIME = {each.onnxruntime: each for each in ELEMENT_TYPES}
BY_TENSORRT = {each.tensorrt: each for each in ELEMENT_TYPES if each.tensorrt is not None}
