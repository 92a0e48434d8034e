"""What a bundle says about itself: the manifest as a document, with its own checksum.

Knows how a manifest is read, written and identified. Does not know its fields (`fields`), whether they fit together
(`contract`), or where the files are (`titans_runtime.bundle`).
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Literal, cast

import msgspec
from msgspec import Struct

from titans_format.contract import check_contract
from titans_format.document import MANIFEST_FILE, JsonObject, JsonValue, Positive, parse, read
from titans_format.errors import BundleError
from titans_format.fields import Ends, Fields, GenerationDefaults
from titans_format.seal import seal
from titans_format.specs import DataFile

FORMAT = "titans-bundle"
FORMAT_VERSION = 1


class Manifest(Fields, frozen=True, kw_only=True, dict=True):
    """Everything a runtime needs to know to drive a bundle; its fields are those of `Fields`."""

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read and check a manifest. Raises `BundleError` for anything that is not a sound version-1 manifest."""
        return read_manifest(parse(text, MANIFEST_FILE))

    def to_json(self) -> str:
        """The manifest as JSON text with its own checksum; `from_json` gives back an equal manifest."""
        fields: JsonObject = msgspec.to_builtins(self)
        for name, nothing in msgspec.to_builtins(_UNSAID).items():
            if fields[name] == nothing:
                del fields[name]
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}
        return json.dumps(seal(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @cached_property
    def state_identity(self) -> str:
        """A SHA-256 of what a saved state depends on: the weights, the chunk and the state table.

        Graphs may be exported anew and engines built without making saved states useless.
        """
        table = msgspec.to_builtins([self.weights.sha256, self.chunk, self.inputs, self.states])
        facts = json.dumps(table, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def surprise_layers(self) -> int:
        """How many memory layers report their surprise; 0 for a model without memory."""
        for graph in self.graphs:
            for tensor in graph.outputs:
                if tensor.name == "surprise":
                    return cast(int, tensor.shape[-1])
        return 0

    def files(self) -> tuple[DataFile, ...]:
        """Every file that the bundle must have besides the manifest, in the order of the manifest."""
        files = [DataFile(file=graph.file, sha256=graph.sha256) for graph in self.graphs]
        files += [twin for graph in self.graphs for twin in (graph.cpu, graph.fused) if twin is not None]
        files.append(self.weights)
        if self.initial_state is not None:
            files.append(self.initial_state)
        if self.tokenizer is not None and self.tokenizer.data_file is not None:
            files.append(self.tokenizer.data_file)
        if self.chat_template is not None:
            files.append(self.chat_template)
        return tuple(file for file in files if file.file not in self.omitted)


# What is left out of the document where it says nothing.
_UNSAID = {"providers": None, "omitted": (), "ends": Ends(), "series": None, "generation": GenerationDefaults()} | {
    "chat_template": None
}


def read_manifest(document: JsonValue) -> Manifest:
    """The manifest that a parsed document is.

    Raises:
        BundleError: not a bundle's manifest, a newer format, a field that is missing or wrong, or parts that do not fit
            together.
    """
    header = read(document, _Header, MANIFEST_FILE)
    if header.format_version > FORMAT_VERSION:
        raise BundleError(
            f"format_version is {header.format_version}, this runtime reads up to {FORMAT_VERSION}",
            "install a newer titans-deploy, from where you had this one",
            where=MANIFEST_FILE,
        )
    manifest = read(document, Manifest, MANIFEST_FILE)
    check_contract(manifest)
    return manifest


class _Header(Struct):
    """What tells a manifest of this format from other documents."""

    format: Literal["titans-bundle"]
    format_version: Positive
