"""Programs around libtitans: what a step costs, threads, damage, callers in C and Rust, and what is installed."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

import titans_runtime
from tests.libtitans.conftest import ROOT, SOURCES, exported, run
from tests.runtime.toy import Toy, write_toy
from titans_runtime import native

LARGEST = 1_000_000  # bytes of the library
HEADER_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
TEXT = "def main(): "


@pytest.fixture(scope="module")
def mag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("mag-tokens", tmp_path_factory.mktemp("mag"))


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", built, "--prefix", prefix, "--strip")
    return prefix


@pytest.fixture(scope="module")
def byte_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of bytes that answers in letters."""
    return write_toy(tmp_path_factory.mktemp("bytes") / "toy.titans", Toy(letters=True))


def answer(bundle: Path) -> str:
    """What Python generates greedily."""
    session = titans_runtime.load(bundle, provider="cpu", threads=1).session()
    return bytes(
        session.generate_tokens(list(TEXT.encode()), 32, titans_runtime.SamplingOptions(temperature=0))
    ).decode()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_allocates_nothing_and_takes_no_lock(
    mag: Path, built: Path, onnxruntime_library: Path, fused: bool
) -> None:
    kernels = native.kernels()
    if fused and kernels is None:
        pytest.skip(f"this installation is {native.described()}")
    library = kernels.path if fused and kernels is not None else Path("-")
    cost = json.loads(run(built / "steps", mag, onnxruntime_library, library, "200", "120"))
    assert (cost["allocations"], cost["locks"]) == (0, 0)
    assert cost["allocations_before"] > 1000  # so they are counted
    assert cost["locks_before"] > 0
    assert cost["position"] == 320


def test_threads_share_a_model_and_take_turns_at_a_session(mag: Path, built: Path, onnxruntime_library: Path) -> None:
    assert "fed" in run(built / "threads", mag, onnxruntime_library)


def test_damaged_bundles_and_states_are_refused_or_run(built: Path, onnxruntime_library: Path, tmp_path: Path) -> None:
    from studies.fuzz.bundles import tiny_bundle

    found = json.loads(run(built / "fuzz", tiny_bundle(tmp_path), onnxruntime_library, tmp_path / "copy", "200", "1"))
    assert found["cases"] == 200
    assert min(found["bundles_refused"], found["states_refused"]) > 25
    assert min(found["bundles_ran"], found["states_ran"]) > 3


def test_a_c_program_finds_the_library_through_pkg_config(
    installed: Path, byte_bundle: Path, onnxruntime_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("pkg-config") is None or shutil.which("gcc") is None:
        pytest.skip("there is no pkg-config, or no gcc")
    folder = next(installed.glob("lib*/**/pkgconfig"))
    monkeypatch.setenv("PKG_CONFIG_PATH", str(folder))
    flags = run("pkg-config", "--define-variable", f"prefix={installed}", "--cflags", "--libs", "titans").split()
    program = tmp_path / "continue"
    run("gcc", *HEADER_FLAGS, SOURCES / "examples/continue.c", *flags, "-o", program)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder.parent))
    assert run(program, byte_bundle, onnxruntime_library, TEXT) == answer(byte_bundle) + "\n"
    state = tmp_path / "alice.state"
    run(program, byte_bundle, onnxruntime_library, TEXT, state)
    run(program, byte_bundle, onnxruntime_library, TEXT, state)
    assert titans_runtime.load(byte_bundle, provider="cpu").restore(state).position == 2 * (len(TEXT) + 32)


def test_cmake_finds_the_package(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(user C)\nfind_package(titans 0.1 REQUIRED)\n"
        f"add_executable(user {SOURCES}/examples/continue.c)\ntarget_link_libraries(user titans::titans)\n"
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", tmp_path / "build")
    assert (tmp_path / "build" / "user").exists()


def test_a_rust_program_calls_the_library(
    installed: Path, byte_bundle: Path, onnxruntime_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("there is no rustc")
    program, folder = tmp_path / "continue", next(installed.glob("lib*/**/pkgconfig")).parent
    run("rustc", SOURCES / "examples/continue.rs", "-L", f"native={folder}", "-l", "dylib=titans", "-o", program)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    assert run(program, byte_bundle, onnxruntime_library, TEXT) == answer(byte_bundle) + "\n"


def test_the_library_is_small_and_exports_its_interface_alone(installed: Path) -> None:
    library = next(installed.glob("lib*/**/libtitans.so")).resolve()
    assert library.stat().st_size <= LARGEST
    if shutil.which("nm") is None:
        pytest.skip("there is no nm")
    header = (SOURCES / "include/titans.h").read_text(encoding="utf-8")
    names = [line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()]
    assert names
    for name in names:
        assert name.startswith("titans_")
        assert f" {name}(" in header.replace("*", " ")


def test_the_table_of_operators_is_that_of_the_runtime() -> None:
    table = runpy.run_path(str(ROOT / "scripts/native/operators.py"))["table"]()
    assert (SOURCES / "src/operators.inc").read_text(encoding="utf-8") == table, "run scripts/native/operators.py"
