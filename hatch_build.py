"""The build hook: compiles the fused kernels for CPUs, where there is a C++ compiler for them.

Without one, or where compiling fails, the package is complete but for them: a bundle's portable graphs need none.
`CXX` names another compiler than g++ or clang++; `TITANS_KERNELS=off` leaves the kernels out. `TITANS_WHEEL_PLATFORM`
is the platform tag of another machine that `CXX` compiles for, such as manylinux_2_28_aarch64.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("runtime/titans_runtime/native")
LIBRARY = "titans_kernels.so"
PER_LEVEL = ("memory.cpp", "attention.cpp", "linear.cpp", "blocks.cpp", "window.cpp", "kernels.cpp")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
FLOATS = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
PLATFORM = os.environ.get("TITANS_WHEEL_PLATFORM", "")
# The levels of the x86-64 psABI that make a difference here; the best one a machine has is chosen when it is loaded.
LEVELS = {"v1": []}
if (PLATFORM or platform.machine()).lower().endswith(("x86_64", "amd64")):
    LEVELS["v3"] = ["-mavx2", "-mfma"]
    LEVELS["v4"] = [*LEVELS["v3"], "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx512vnni"]


class KernelsHook(BuildHookInterface[Any]):
    """Runs before a wheel or an editable install is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile: beside the sources for an editable install, else into the wheel, then one for such machines only."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / NATIVE
        self.made = Path(tempfile.mkdtemp())
        library = folder / LIBRARY if version == "editable" else self.made / LIBRARY
        problem = build(folder, library)
        if problem is not None and PLATFORM:
            raise RuntimeError(f"no kernels for {PLATFORM}: {problem}")  # whoever names a machine wants its kernels
        if problem is not None:
            library.unlink(missing_ok=True)  # of other sources, where it is there
            self.app.display_warning(f"no fused kernels: {problem}")
            return
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("universal2", platform.machine())  # the library is for one of the two
        build_data["tag"] = f"py3-none-{PLATFORM or system.replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["force_include"][str(library)] = f"titans_runtime/native/{LIBRARY}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Tidy up."""
        if self.target_name == "wheel":
            shutil.rmtree(self.made, ignore_errors=True)


def build(folder: Path, library: Path, *extra: str) -> str | None:
    """Compile the kernels in `folder` to `library`, with `extra` options. Returns what was in the way, or None."""
    wanted = os.environ.get("TITANS_KERNELS", "")
    if wanted.lower() in {"off", "0"}:
        return "TITANS_KERNELS is off"
    if wanted not in {"", "v1", "v3", "v4"}:
        raise ValueError(f"TITANS_KERNELS is {wanted!r}; set it to off, or leave it out")
    if PLATFORM and not os.environ.get("CXX"):
        return "set CXX to a compiler for that machine"
    if sys.platform == "win32":
        return "they need g++ or clang++ and have not been written for Windows"
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or "")
    if not compiler:
        return "there is no C++ compiler; install g++ or clang++, and install this package again"
    with tempfile.TemporaryDirectory() as made:
        compiled = str(Path(made) / LIBRARY)
        objects, steps = [], []
        for level, options in LEVELS.items():
            for source in PER_LEVEL:
                objects.append(str(Path(made) / f"{source}.{level}.o"))
                define = f"-DTITANS_ISA={level}"
                steps.append([*compiler, *FLAGS, *extra, *FLOATS, *options, define, "-c", source, "-o", objects[-1]])
        steps.append([*compiler, *FLAGS, *extra, "-shared", "operators.cpp", *objects, "-o", compiled])
        try:
            for step in steps:
                subprocess.run(step, cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            return f"{compiler[0]} could not compile them ({lines[0] if lines else error})"
        shutil.copyfile(compiled, f"{library}.new")
        Path(f"{library}.new").replace(library)  # a process that has the old one loaded keeps it
    return None


if __name__ == "__main__":
    here = Path(__file__).resolve().parent / NATIVE
    trouble = build(here, here / LIBRARY)
    if trouble is not None:
        (here / LIBRARY).unlink(missing_ok=True)  # it would be one of other sources
    sys.exit(trouble)
