"""Files that are none, that never end, or that ask for more than there is: refused at once, with what to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from tests.runtime.forge import sign, write
from titans_cli.main import cli
from titans_format.contract import MOST_BYTES, MOST_GRAPHS
from titans_format.names import is_plain, stays_inside
from titans_runtime import BundleError, InputError, StateError, TitansError, load, memory
from titans_runtime.bundle import MAX_MANIFEST_BYTES, open_bundle
from titans_runtime.stream import state_file
from titans_runtime.tensorfile import map_tensors

KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "links in a circle": lambda path: path.symlink_to(path.name),
}
FILES = ["manifest.json", "step.onnx", "weights.safetensors", "initial_state.safetensors"]


@pytest.fixture
def bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to spoil, at a short path: that of a socket is limited."""
    return Path(shutil.copytree(toy_bundle, tmp_path_factory.mktemp("b") / "b"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_refused_before_it_is_read(
    bundle: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / name).unlink()
    monkeypatch.chdir(bundle)
    KINDS[kind](Path(name))
    with pytest.raises(BundleError, match=r"; ") as caught:
        load(bundle, provider="cpu")
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "socket"])
def test_a_state_that_is_no_file_is_refused(
    toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("s")
    monkeypatch.chdir(folder)
    KINDS[kind](Path("s"))
    with pytest.raises(StateError, match=rf"it is a {kind}, not a file\); name a regular file"):
        load(toy_bundle, provider="cpu").restore("s")
    for command in (["state", "inspect", "s"], ["state", "diff", "s", "s"]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2
        assert f"it is a {kind}, not a file" in result.output


def test_a_manifest_has_a_largest_size(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(text + b" " * MAX_MANIFEST_BYTES)
    with pytest.raises(BundleError, match=f"larger than {MAX_MANIFEST_BYTES:,} bytes"):
        load(bundle, provider="cpu")


def test_a_file_of_the_systems_that_has_no_size_is_read_to_its_limit_alone(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").symlink_to("/proc/self/maps")
    with pytest.raises(BundleError, match="manifest"):
        load(bundle, provider="cpu")


# What a manifest asks for.


def changed(bundle: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    change(document)
    sign(bundle, document)
    return bundle


def _grow(document: dict[str, Any], size: int) -> None:
    """Make the first state, and every input and output that is it, `size` wide."""
    state = document["states"][1]
    state["shape"] = ["batch", size]
    for graph in document["graphs"]:
        for tensor in graph["inputs"] + graph["outputs"]:
            if tensor["name"] in (state["input"], state["output"]):
                tensor["shape"] = ["batch", size]


def _multiply(document: dict[str, Any]) -> None:
    document["states"][1]["shape"] = ["batch", *[2**30] * 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _grow(d, 2**30), "memory are needed|state 'trace'|input 'trace'|bytes"),
        (_multiply, f"more than {MOST_BYTES:,}"),
        (lambda d: d["states"][1].update(shape=["batch", *[1] * 5000]), "a list of at most 16"),
        (lambda d: d["states"][0].update(name="last_output"), "the name of something else"),
        (lambda d: d["states"][0].update(name="__metadata__"), "the name of something else"),
        (lambda d: d["states"][0].update(name="\ud800"), "UTF-8 cannot express"),
        (lambda d: d["model"].update(config={"x": float("nan")}), "numbers that are not finite"),
        (lambda d: d.update(graphs=d["graphs"] * (MOST_GRAPHS + 1)), "graphs, more than"),
        (lambda d: d["states"][1]["initial"].update(value=1e300), "which is no float32"),
    ],
)
def test_what_a_manifest_asks_for_is_bounded(bundle: Path, change: Callable[[Any], None], message: str) -> None:
    changed(bundle, change)
    with pytest.raises(BundleError, match=message):
        load(bundle, provider="cpu")
    assert CliRunner().invoke(cli, ["inspect", str(bundle)]).exit_code in (0, 1, 2)


def test_sizes_are_held_against_the_memory_there_is(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(BundleError, match=r"GiB are there for the state of a stream .* free some memory"):
        load(bundle, provider="cpu")


def test_more_streams_than_memory_are_refused(bundle: Path) -> None:
    model = load(bundle, provider="cpu")
    with pytest.raises(InputError, match=r"for the state of 1,000,000,000 streams .* use fewer streams"):
        model.driver(10**9)


def test_a_name_that_is_given_twice_is_refused(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(text.replace('"dtype": "fp32",', '"dtype": "fp32", "dtype": "fp32",', 1))
    with pytest.raises(BundleError, match="'dtype' appears twice"):
        open_bundle(bundle)


# Names that become files.


@pytest.mark.parametrize(
    "name",
    ["../up", "/abs", "a/b", "a\\b", "", ".", "..", ".hidden", "-x", "a\0b", "a:b", "a b", "é", "x" * 129, "CON",
     "nul.txt", "a\n", "$(x)"],
)  # fmt: skip
def test_a_graphs_name_is_plain(tmp_path: Path, name: str) -> None:
    assert not is_plain(name)
    folder = write(tmp_path / "b")
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    document["graphs"][0]["name"] = name
    sign(folder, document)
    with pytest.raises(BundleError, match=r"graphs\[0\]\.name"):
        load(folder, provider="cpu")


@pytest.mark.parametrize("name", ["step", "step_7", "commit-2", "a.b", "0"])
def test_plain_names_are_taken(name: str) -> None:
    assert is_plain(name)
    assert stays_inside(f"folder/{name}")


@pytest.mark.parametrize("path", ["a//b", "a/", "/a", "a/../b", "./a", "a/.", "C:/a", "a/.b", ""])
def test_a_path_stays_inside(path: str) -> None:
    assert not stays_inside(path)


# Tensor files: as the safetensors library takes them, or not at all.


def _file(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + body


def _entry(first: int, last: int, count: int = 1) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [count], "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("content", "sound"),
    [
        (_file({"a": _entry(0, 4), "b": _entry(4, 8)}, bytes(8)), True),
        (_file({"b": _entry(4, 8), "a": _entry(0, 4)}, bytes(8)), True),
        (_file({}, b""), True),
        (_file({"a": _entry(0, 0, 0), "b": _entry(0, 4)}, bytes(4)), True),
        (_file({"a": _entry(0, 4), "b": _entry(0, 4)}, bytes(4)), False),
        (_file({"a": _entry(0, 8, 2), "b": _entry(4, 8)}, bytes(8)), False),
        (_file({"a": _entry(0, 4), "b": _entry(8, 12)}, bytes(12)), False),
        (_file({"a": _entry(4, 8)}, bytes(8)), False),
        (_file({"a": _entry(0, 4)}, bytes(8)), False),
        (_file({"a": _entry(0, 4)}, bytes(3)), False),
        (_file({"a": {**_entry(0, 4), "shape": [2**32, 2**32, 0]}}, bytes(4)), False),
        (_file({"a": {**_entry(0, 4), "shape": [2**63]}}, bytes(4)), False),
    ],
)
def test_tensor_files_are_read_as_the_library_reads_them(tmp_path: Path, content: bytes, sound: bool) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    if sound:
        ours = map_tensors(tmp_path / "x.safetensors")
        theirs = load_tensors(content)
        assert {name: tensor.array.tolist() for name, tensor in ours.items()} == {
            name: array.tolist() for name, array in theirs.items()
        }
        return
    with pytest.raises(BundleError, match=r"x\.safetensors"):
        map_tensors(tmp_path / "x.safetensors")
    with pytest.raises(SafetensorError):
        load_tensors(content)


def test_a_tensor_that_is_described_twice_is_refused(tmp_path: Path) -> None:
    entry = json.dumps(_entry(0, 4))
    (tmp_path / "x.safetensors").write_bytes(_file(f'{{"a": {entry}, "a": {entry}}}', bytes(4)))
    with pytest.raises(BundleError, match=r"x\.safetensors.*'a' appears twice"):
        map_tensors(tmp_path / "x.safetensors")


# States that are larger than they look.


def _state(shape: list[int], stored: bytes, *, compressed: bool = True) -> bytes:
    facts = {
        "format": "titans-state",
        "format_version": 1,
        "sha256": "0" * 64,
        "identity": "x",
        "model": "m",
        "position": 0,
        "commits": 0,
        "compressed": compressed,
        "recent": [],
        "surprise": {"tokens": 0, "total": 0.0, "squares": 0.0, "highest": 0.0},
        "tensors": {f"t{i}": ["float32", shape] for i in range(4)},
    }
    head = {f"t{i}": {"dtype": "U8", "shape": [len(stored)], "data_offsets": [i * len(stored), (i + 1) * len(stored)]}
            for i in range(4)}  # fmt: skip
    text = json.dumps({"__metadata__": {"titans": json.dumps(facts)}, **head}).encode()
    data = len(text).to_bytes(8, "little") + text + stored * 4
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


@pytest.mark.parametrize("shape", [[2**33], [2**17, 2**16], [2**20, 2**14]])
def test_a_state_that_inflates_beyond_the_memory_there_is_is_refused_unread(
    tmp_path: Path, shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 2**30)
    monkeypatch.setattr(state_file, "_inflate", lambda *args: pytest.fail("it was inflated"))
    (tmp_path / "s").write_bytes(_state(shape, zlib.compress(bytes(2**20))))
    for command in (
        ["state", "inspect", str(tmp_path / "s")],
        ["state", "diff", str(tmp_path / "s"), str(tmp_path / "s")],
    ):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 2
        assert "too large for this machine" in result.output


@pytest.mark.parametrize("shape", [[2**62, 4], [2**32, 2**32], [1] * 1000, [2**62] * 10])
def test_products_of_a_states_sizes_do_not_wrap(tmp_path: Path, shape: list[int]) -> None:
    (tmp_path / "s").write_bytes(_state(shape, zlib.compress(b"")))
    result = CliRunner().invoke(cli, ["state", "inspect", str(tmp_path / "s")])
    assert result.exit_code == 2
    assert "; " in result.output


# What a run leaves behind.


def test_a_run_writes_nothing_into_the_users_folders(toy_bundle: Path, tmp_path: Path) -> None:
    home = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")}
    for folder in home.values():
        folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {name: str(folder) for name, folder in home.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    code = (
        "import sys, titans_runtime as t; from titans_runtime.devices import doctor\n"
        "t.load(sys.argv[1], provider='cpu', threads=1).session().feed([1] * 20); doctor.report()\n"
        "import os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    )
    subprocess.run([sys.executable, "-c", code, str(toy_bundle)], env=environment, check=True, timeout=120)
    left = [str(path) for folder in home.values() for path in folder.rglob("*") if path.is_file()]
    assert left == []


def test_who_wants_telemetry_can_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from titans_runtime.devices.ort_sessions import import_onnxruntime

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_too_many_open_files_are_said_to_be_that(toy_bundle: Path) -> None:
    code = (
        "import resource, sys, os, titans_runtime as t\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); held = []\n"
        "try:\n"
        "    while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "try: t.load(sys.argv[1], provider='cpu')\n"
        "except t.BundleError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(toy_bundle)], capture_output=True, text=True, timeout=120)
    assert "ulimit -n" in run.stdout, run.stderr


def test_refused_memory_is_said_to_be_that() -> None:
    from titans_runtime.devices.ort_sessions import load_remedy

    for error in (MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Failed to allocate memory for 8 bytes")):
        assert load_remedy(error).startswith("free some memory")
    assert "upgrade onnxruntime" in load_remedy(RuntimeError("no kernel"))


def test_only_errors_of_ours_leave(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(TitansError):
        load(bundle)
    assert np.isfinite(0.0)
