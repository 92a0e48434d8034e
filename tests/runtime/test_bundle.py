"""Damaged bundles: every file missing, cut short or altered by one bit is an error that names it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.toy import Toy
from titans_format.seal import seal
from titans_runtime import BundleError, ProviderError, load
from titans_runtime.bundle import open_bundle
from titans_runtime.tensorfile import map_tensors

FILES = [
    "manifest.json",
    "weights.safetensors",
    "initial_state.safetensors",
    "step.onnx",
    "extend.onnx",
    "prefill.onnx",
    "commit.onnx",
]


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(toy_bundle, tmp_path / "copy.titans")


def sign(bundle: Path, name: str) -> None:
    """Record the hash and size of a file as it is now, as an attacker or a faulty exporter would."""
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    content = (bundle / name).read_bytes()
    for entry in [*document["graphs"], document["weights"], document["initial_state"]]:
        if entry["file"] == name:
            entry["sha256"] = hashlib.sha256(content).hexdigest()
            entry.update({"bytes": len(content)} if "bytes" in entry else {})
    (bundle / "manifest.json").write_text(json.dumps(seal(document)), encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(bundle: Path, name: str, keep: float) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_flipped_bit_is_named_wherever_it_is(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    for at in (0, len(content) // 2, len(content) - 1):
        (bundle / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BundleError, match=rf"{name} is not the file that was exported"):
            open_bundle(bundle)


def test_a_manifest_that_is_not_utf8_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(BundleError, match="not UTF-8"):
        open_bundle(bundle)


def test_what_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(BundleError, match="titans export"):
            open_bundle(path)


def test_a_directory_in_place_of_a_file_is_an_error(bundle: Path) -> None:
    (bundle / "step.onnx").unlink()
    (bundle / "step.onnx").mkdir()
    with pytest.raises(BundleError, match=r"step\.onnx cannot be read"):
        open_bundle(bundle)


def test_a_graph_that_is_not_onnx_is_refused_before_a_stream_needs_it(bundle: Path) -> None:
    (bundle / "commit.onnx").write_bytes(b"not a graph")
    sign(bundle, "commit.onnx")
    with pytest.raises(BundleError, match=r"commit\.onnx cannot be read .* export the bundle again"):
        load(bundle, provider="cpu")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]}}',
        b"\xff",
    ],
)
def test_a_tensor_file_that_lies_about_itself_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(BundleError, match=r"x\.safetensors"):
        map_tensors(path)


@pytest.mark.parametrize("content", [b"", b"abc", (2**40).to_bytes(8, "little"), (2**64 - 1).to_bytes(8, "little")])
def test_a_tensor_file_that_is_too_short_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.safetensors"):
        map_tensors(tmp_path / "x.safetensors")


def test_an_initial_tensor_must_be_there_and_fit_its_state(bundle: Path) -> None:
    shutil.copy(bundle / "weights.safetensors", bundle / "initial_state.safetensors")
    sign(bundle, "initial_state.safetensors")
    with pytest.raises(BundleError, match=r"no tensor '0\.memory_0'"):
        open_bundle(bundle)
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    document["states"][0]["initial"]["tensor"] = "head"
    (bundle / "manifest.json").write_text(json.dumps(seal(document)), encoding="utf-8")
    with pytest.raises(BundleError, match="'head' is float32"):
        open_bundle(bundle)


def test_weights_are_windows_onto_one_mapping_of_the_file(toy_bundle: Path) -> None:
    weights = open_bundle(toy_bundle).weights
    for name, expected in Toy().weights().items():
        np.testing.assert_array_equal(weights[name].array, expected)
        assert not weights[name].array.flags.writeable
        assert not weights[name].array.flags.owndata


def test_an_unknown_provider_lists_the_known_ones(toy_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"unknown provider 'abacus'; use one of .*cpu.*auto"):
        load(toy_bundle, provider="abacus")


@pytest.mark.parametrize("edit", [{"dtype": "fp16"}, {"provenance": {}}, {"sha256": "0" * 64}])
def test_an_edited_manifest_is_refused(bundle: Path, edit: dict[str, object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    (bundle / "manifest.json").write_text(json.dumps({**document, **edit}), encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json was changed after it was written.*copy the bundle again"):
        open_bundle(bundle)


def test_a_manifest_without_its_checksum_is_refused(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    del document["sha256"]
    (bundle / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match=rf"^{bundle}/manifest\.json .*sha256"):
        open_bundle(bundle)


def test_a_manifest_may_be_laid_out_in_another_way(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    text = json.dumps(dict(reversed(document.items())), indent=4)
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    assert open_bundle(bundle).manifest.chunk == document["chunk"]
