"""Runs libtitans under the sanitizers of g++: damaged bundles and states, and threads that share a model.

python scripts/native/sanitize.py --cases 20000
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import click
import onnxruntime

from studies.fuzz.bundles import tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "runtime" / "libtitans"
# ONNX Runtime is not compiled for the sanitizer, which sees neither how its threads wait nor how it ends.
SUPPRESSED = "called_from_lib:libonnxruntime\nrace:libonnxruntime\nmutex:__run_exit_handlers\n"


def compiled(sanitizers: str, program: str) -> Path:
    """A program of the tests, with sanitizers in it."""
    folder = ROOT / "build" / f"libtitans-{sanitizers.replace(',', '-')}"
    options = [f"-DTITANS_SANITIZE={sanitizers}", "-DTITANS_TESTS=ON", "-DTITANS_KERNELS=OFF"]
    flags = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1"]
    subprocess.run(["cmake", "-S", SOURCES, "-B", folder, *options, *flags], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder, "--parallel", "2", "--target", program], check=True)
    return folder / program


@click.command()
@click.option("--cases", type=click.IntRange(1), default=20_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(cases: int, seed: int) -> None:
    """Run both; a finding ends the command with a report."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = tiny_bundle(folder)
        suppressions = folder / "suppressions"
        suppressions.write_text(SUPPRESSED, encoding="utf-8")
        fuzz = compiled("address,undefined", "fuzz")
        subprocess.run([fuzz, bundle, library, folder / "copy", str(cases), str(seed)], check=True)
        threads = compiled("thread", "threads")
        settings = {**os.environ, "TSAN_OPTIONS": f"suppressions={suppressions}"}
        subprocess.run([threads, bundle, library], check=True, env=settings)


if __name__ == "__main__":
    main()
