"""What a bundle is made of: files, tensors, states, graphs and the schedule, as a manifest says it.

Knows the fields, their ranges and their meaning. Does not know whether they fit together (`contract`).
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from titans_format.document import BATCH_PATTERN, Count, Digest, FilePath, Number, PlainName, Positive, Text
from titans_format.dtypes import BY_NAME, DType

BATCH: Final = "batch"  # the one symbolic dimension: independent streams
LAST = "last_output"  # what saved sessions call the outputs after the last token
METADATA = "__metadata__"  # what safetensors files call other things than tensors
MOST_AXES = 16  # of a tensor; ours have up to 5
# A dimension beyond this is damage: one float32 row of it would be 4 GiB.
MAX_DIMENSION = 2**30

StateKind = Literal["carried", "rows"]
GraphKind = Literal["prefill", "extend", "step", "commit"]
Dimension = Annotated[int, Meta(ge=1, le=MAX_DIMENSION)]
Size = Dimension | Annotated[str, Meta(pattern=BATCH_PATTERN)]
Shape: TypeAlias = Annotated[tuple[Size, ...], Meta(max_length=MOST_AXES)]


class DataFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file of the bundle, relative to it; `bytes` is None where only the hash is recorded."""

    file: FilePath
    sha256: Digest
    bytes: Count | None = None


class Initial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a state tensor starts.

    value: of every element, of a constant.
    tensor: an entry of the initial state file, shaped without the batch axis, of a learned one.
    """

    kind: Literal["zeros", "constant", "learned"]
    value: Number = 0.0
    tensor: Text | None = None


class StateSpec(Struct, frozen=True, kw_only=True):
    """One state tensor.

    carried: `[batch, ...]`; a graph that outputs it returns its next value.
    rows: `[R, batch, ...]`; a graph returns new rows, stored at position % R. Rows at and after position % R
    are stale.
    """

    name: Text
    kind: StateKind
    dtype: DType
    shape: Shape
    initial: Initial
    input: Text
    output: Text

    @property
    def batch_axis(self) -> int:
        """Where the streams are."""
        return 0 if self.kind == "carried" else 1

    def concrete(self, batch: int) -> tuple[int, ...]:
        """The shape for `batch` streams."""
        return tuple(batch if isinstance(size, str) else size for size in self.shape)

    @property
    def stream_bytes(self) -> int:
        """Bytes that one stream needs for this tensor."""
        return math.prod(self.concrete(1)) * BY_NAME[self.dtype].bytes


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One input or output of a graph."""

    name: Text
    dtype: DType
    shape: Shape


class Cost(Struct, frozen=True, kw_only=True):
    """What one call with one stream costs at least; for benchmarks.

    flops: multiplications and additions of its matrix products.
    weight_bytes: of the weights that it reads, each once.
    read_bytes, written_bytes: of its inputs and outputs, state included.
    """

    flops: Count
    weight_bytes: Count
    read_bytes: Count
    written_bytes: Count

    @property
    def moved_bytes(self) -> int:
        """Bytes that must move."""
        return self.weight_bytes + self.read_bytes + self.written_bytes


class GraphSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ONNX graph and what it reads and writes.

    tokens: how many positions one call holds; 0 for a commit.
    cpu: the same graph for CPUs, which have few half-precision kernels: it computes in float32, and takes the
        half-precision weights that it uses as float32 inputs under their names. None where `file` runs everywhere.
    fused: the same graph with memories as single operators, for CPUs where the runtime has kernels for them.
        None where there is none of these.
    cost: of one call; None in bundles that were exported before it was counted.
    """

    name: PlainName
    kind: GraphKind
    file: FilePath
    sha256: Digest
    tokens: Count
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cpu: DataFile | None = None
    fused: DataFile | None = None
    cost: Cost | None = None


class Due(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Run `graph` whenever the position reaches `phase` more than a multiple of `period` tokens.

    A commit runs once the position is reached. A step graph takes the place of the ordinary one for the token that
    reaches it.
    """

    graph: Text
    period: Positive
    phase: Count = 0
