"""libtitans, compiled once, and small bundles that the C interface and Python are compared on."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import pytest

from tests.export.conftest import build
from tests.export.titans_pytorch import cases
from tests.libtitans.binding import Library
from titans_export.export import export_model

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "runtime" / "libtitans"
BUILD = ROOT / "build" / "libtitans"  # that of `make native`
OURS = ("mac-tokens", "mag-tokens", "mal-tokens", "lmm-tokens", "decoder-tokens", "mac-continuous")
KINDS = (*OURS, "imported", "mac-bf16", "mag-int8")


def run(*words: str | Path, folder: Path | None = None) -> str:
    """What a command prints; it has to succeed."""
    done = subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words[0]}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder with the library and the programs of the tests. Compiles what is not up to date."""
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    for header in ("nlohmann/json.hpp", "openssl/evp.h", "zlib.h"):
        test = subprocess.run(["g++", "-fsyntax-only", "-include", header, "-xc++", "/dev/null"], capture_output=True)
        if test.returncode:
            pytest.skip(f"there is no {header}; run scripts/native_packages.sh")
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        options = ("-DTITANS_TESTS=ON", "-DTITANS_KERNELS=OFF")
        run("cmake", "-S", SOURCES, "-B", BUILD, *options)
        run("cmake", "--build", BUILD, "--parallel", "2")
    return BUILD


@pytest.fixture(scope="session")
def library(built: Path) -> Library:
    """The shared library in this process."""
    return Library(built / "libtitans.so")


@pytest.fixture(scope="session")
def onnxruntime_library() -> Path:
    """ONNX Runtime's shared library, as its Python package has it."""
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))


@dataclass(frozen=True)
class Case:
    """A bundle, and a name for messages."""

    name: str
    path: Path


def exported(kind: str, folder: Path) -> Path:
    """The bundle of a kind."""
    if kind == "imported":
        return cases.imported(cases.transformer({**cases.TRAIN_MAC, "num_tokens": 50}), folder).path
    path = folder / f"{kind}.titans"
    variant, rest = kind.split("-")
    dtype = rest if rest in ("bf16", "int8") else "fp32"
    model = build(f"{variant}-tokens" if dtype != "fp32" else kind)
    export_model(model, path, dtype=dtype, verify_tokens=0)
    return path


@pytest.fixture(scope="session", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One bundle of every variant, of a decoder with a memory, of an imported model, and of lower precisions."""
    return Case(request.param, exported(request.param, tmp_path_factory.mktemp("c")))
