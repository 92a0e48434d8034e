"""What libtitans refuses: every refusal is a code and a sentence with a remedy, and changes nothing."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import titans_runtime
from tests.libtitans.binding import CModel, CSession, Library, TitansCodeError
from tests.runtime.toy import Toy, write_toy
from titans_format.seal import seal
from titans_runtime.stream import state_file

TEXT = list(b"what is to be remembered")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.titans", Toy())


@pytest.fixture(scope="module")
def model(library: Library, toy: Path, onnxruntime_library: Path) -> CModel:
    return CModel(library, toy, onnxruntime_library)


def refused(code: str, call: Callable[[], object], words: str = "") -> str:
    """The message of a call that has to fail with a code."""
    with pytest.raises(TitansCodeError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.code == code, message
    assert "; " in message
    assert words in message
    return message


def test_inputs_that_the_model_cannot_take_change_nothing(model: CModel) -> None:
    session = model.session()
    session.feed(TEXT)
    last = session.last()
    for bad in ([256], [1, 2, -1], [2**40], []):
        refused("input", lambda bad=bad: session.feed(bad))  # type: ignore[misc]
    refused(
        "input", lambda: session.library.call("session_feed_vectors", session.handle, (ctypes.c_float * 3)(), 1, None)
    )
    refused("input", lambda: session.library.call("session_last", session.handle, (ctypes.c_float * 3)(), 3), "room")
    for name, value in (
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("top_k", -1),
        ("seed", -2),
        ("max_new_tokens", -1),
        ("size", 3),
        ("stop_count", 1),
    ):
        refused("input", lambda n=name, v=value: session.generate([1], model.sampling(**{n: v})), name)  # type: ignore[misc]
    refused("input", lambda: session.generate([1, 999], model.sampling()), "999")
    refused("input", lambda: model.session().generate(None, model.sampling()), "nothing to go on from")
    refused("input", lambda: model.session().last(), "nothing was fed")
    assert session.position == len(TEXT)
    assert np.array_equal(session.last(), last)


def test_null_pointers_are_refused(library: Library, model: CModel) -> None:
    none = ctypes.c_void_p()
    for name, count in (
        ("model_load", 3),
        ("model_describe", 2),
        ("session_open", 2),
        ("session_feed", 4),
        ("session_feed_vectors", 4),
        ("session_last", 3),
        ("session_reset", 1),
        ("session_fork", 2),
        ("session_mark", 2),
        ("session_rewind", 2),
        ("session_save", 3),
        ("session_to_bytes", 3),
        ("session_restore", 3),
        ("session_restore_bytes", 4),
        ("sampling_init", 2),
        ("generator_open", 5),
        ("generator_next", 3),
        ("session_generate", 8),
    ):
        refused("input", lambda n=name, c=count: library.call(n, *[none] * c), "null")  # type: ignore[misc]
    for name in ("model_close", "session_close", "mark_free", "bytes_free", "generator_close"):
        getattr(library.dll, f"titans_{name}")(none)
    assert library.dll.titans_session_feed(none, none, 0, none, none) == 1  # without a place for the error


def test_numbers_that_are_not_finite_poison_a_session_until_it_is_moved(model: CModel, toy: Path) -> None:
    python = titans_runtime.load(toy, provider="cpu", threads=1)
    session = python.session()
    session.feed(TEXT[:3])
    now = session._stream.now
    tensors = python._backend.read(now.state)  # type: ignore[arg-type]
    memory = next(state.name for state in python.manifest.states if state.initial.kind == "learned")
    tensors[memory] = np.full_like(tensors[memory], 3e38)
    ours = model.restore_bytes(state_file.pack(python.manifest, tensors, now))
    here = ours.mark()
    found = refused("non_finite", lambda: ours.feed(TEXT), "at token 3")
    assert "state" in found
    refused("poisoned", lambda: ours.feed(TEXT), "stopped at position 3")
    refused("poisoned", lambda: ours.generate([1], model.sampling()))
    assert ours.position == 3
    ours.rewind(here)
    refused("non_finite", lambda: ours.feed(TEXT))
    ours.reset()
    assert np.array_equal(ours.feed(TEXT)[0], model.session().feed(TEXT)[0])


def test_a_mark_belongs_to_its_model(model: CModel, library: Library, toy: Path, onnxruntime_library: Path) -> None:
    other = CModel(library, toy, onnxruntime_library).session()
    refused("input", lambda: model.session().rewind(other.mark()), "another model")


def test_a_file_that_the_session_has_not_read_is_kept(model: CModel, tmp_path: Path) -> None:
    first, second, file = model.session(), model.session(), tmp_path / "alice.state"
    first.feed(TEXT)
    second.feed(TEXT[:5])
    first.save(file)
    first.feed(TEXT)
    first.save(file)  # its own
    first.fork().save(file)
    refused("state", lambda: second.save(file), "has not read")
    assert model.restore(file).position == 2 * len(TEXT)
    second.save(file, force=True)
    refused("state", lambda: first.save(file))
    again = model.restore(file)
    again.feed(TEXT)
    again.save(file)
    assert not [each for each in tmp_path.iterdir() if each != file]
    refused("state", lambda: first.save(tmp_path), "directory")
    refused("state", lambda: first.save(tmp_path / "no" / "where"), "make its directory")
    refused("state", lambda: model.restore(tmp_path / "nobody"), "missing")
    refused("state", lambda: model.restore(Path("/dev/zero")), "device")


def test_damaged_states_and_those_of_other_models_are_refused(
    model: CModel, library: Library, onnxruntime_library: Path, tmp_path: Path
) -> None:
    session = model.session()
    session.feed(TEXT[:5])
    data = bytearray(session.to_bytes())
    refused("state", lambda: model.restore_bytes(bytes(data[:-1])))
    refused("state", lambda: model.restore_bytes(b""))
    data[-1] ^= 1
    refused("state", lambda: model.restore_bytes(bytes(data)), "checksum")
    other = CModel(library, write_toy(tmp_path / "other.titans", Toy(letters=True)), onnxruntime_library)
    refused("state", lambda: other.restore_bytes(session.to_bytes()), "another model")


def changed(toy: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the toy whose manifest was changed and signed anew."""
    shutil.copytree(toy, folder)
    file = folder / "manifest.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(json.dumps(seal(document)), encoding="utf-8")
    return folder


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "newer": (lambda d: d.update(format_version=2), "newer libtitans"),
    "no-graphs": (lambda d: d.update(graphs=[]), "graph"),
    "escape": (lambda d: d["graphs"][0].update(file="../step.onnx"), "stays inside"),
    "shape": (lambda d: d["states"][0]["shape"].append(3), "type or shape"),
    "huge": (lambda d: d["states"][0]["shape"].append(2**30), "has more than"),
    "hash": (lambda d: d["weights"].update(sha256="0" * 64), "not the file that was exported"),
    "provider": (lambda d: d.update(providers=["cuda"]), "not for provider"),
    "omitted": (lambda d: d.update(omitted=[d["weights"]["file"]]), "left out"),
    "phase": (lambda d: d["schedule"][0].update(phase=8), "never comes"),
    "id": (lambda d: d.update(ends={"eos": [256]}), "outside the vocabulary"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_does_not_fit_is_refused(
    name: str, toy: Path, library: Library, onnxruntime_library: Path, tmp_path: Path
) -> None:
    change, words = CHANGES[name]
    bundle = changed(toy, tmp_path / "toy.titans", change)
    code = "provider" if name == "provider" else "bundle"
    refused(code, lambda: CModel(library, bundle, onnxruntime_library), words)


def test_what_is_not_a_bundle_is_refused(
    toy: Path, library: Library, model: CModel, onnxruntime_library: Path, tmp_path: Path
) -> None:
    refused("bundle", lambda: CModel(library, tmp_path / "nothing", onnxruntime_library), "not a bundle directory")
    refused("bundle", lambda: CModel(library, tmp_path, onnxruntime_library), "missing")
    copy = shutil.copytree(toy, tmp_path / "copy.titans")
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("toy", "tou", 1), encoding="utf-8")
    refused("bundle", lambda: CModel(library, copy, onnxruntime_library), "changed after it was written")
    refused("provider", lambda: CModel(library, toy, tmp_path / "other.so"), "same ONNX Runtime")
    refused("provider", lambda: CModel(library, toy, onnxruntime_library, provider="NoSuch"), "use one of ")
    refused("input", lambda: CModel(library, toy, onnxruntime_library, threads=-1), "threads")
    portable = CModel(library, toy, onnxruntime_library, kernels=tmp_path / "none.so").session()
    portable.feed(TEXT)  # the toy has no fused graphs, so no kernels are opened
    assert model.info.name == b"toy"


def test_a_session_outlives_its_model(library: Library, toy: Path, onnxruntime_library: Path) -> None:
    model = CModel(library, toy, onnxruntime_library)
    session = model.session()
    library.dll.titans_model_close(model.handle)
    model.handle = ctypes.c_void_p()
    handle, session.handle = session.handle, ctypes.c_void_p()
    ids = (ctypes.c_int64 * 3)(1, 2, 3)
    library.call("session_feed", handle, ids, ctypes.c_size_t(3), None)
    assert library.dll.titans_session_position(handle) == 3
    library.dll.titans_session_close(handle)


def test_a_provider_of_the_library_is_found_by_its_name(library: Library, toy: Path, onnxruntime_library: Path) -> None:
    import onnxruntime

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no second provider that needs no device")
    there: CSession = CModel(library, toy, onnxruntime_library, provider="azure").session()
    assert np.array_equal(there.feed(TEXT)[0], CModel(library, toy, onnxruntime_library).session().feed(TEXT)[0])
