"""A bundle in a few figures, as data for reports; made from the manifest alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import cast

from titans_format.document import JsonObject
from titans_format.fields import TokenInputs
from titans_format.manifest import FORMAT_VERSION, Manifest


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a bundle is. Sizes in bytes."""

    name: str
    variant: str
    parameters: int
    format_version: int
    dtype: str
    opset: int
    inputs: str  # "tokens" or "continuous"
    input_size: int  # vocabulary, or features
    output_size: int  # vocabulary, or targets
    chunk: int  # tokens
    tokenizer: str | None
    weight_bytes: int | None
    state_bytes_per_stream: int
    states: int
    graphs: tuple[str, ...]
    verified: bool

    def as_json(self) -> JsonObject:
        """The same as a JSON object."""
        return cast(JsonObject, asdict(self) | {"graphs": list(self.graphs)})


def describe(manifest: Manifest) -> Description:
    """Describe a manifest."""
    inputs = manifest.inputs
    return Description(
        name=manifest.model.name,
        variant=manifest.model.variant,
        parameters=manifest.model.parameters,
        format_version=FORMAT_VERSION,
        dtype=manifest.dtype,
        opset=manifest.opset,
        inputs="tokens" if isinstance(inputs, TokenInputs) else "continuous",
        input_size=inputs.vocab_size if isinstance(inputs, TokenInputs) else inputs.features,
        output_size=inputs.outputs,
        chunk=manifest.chunk,
        tokenizer=None if manifest.tokenizer is None else manifest.tokenizer.kind,
        weight_bytes=manifest.weights.bytes,
        state_bytes_per_stream=manifest.stream_bytes,
        states=len(manifest.states),
        graphs=tuple(graph.name for graph in manifest.graphs),
        verified=manifest.verification is not None and manifest.verification.get("ok") is True,
    )
