"""Python for ARM on another processor: Debian's packages unpacked in a folder, run by qemu's user mode.

Nothing is installed on the machine, and nothing has to be root. What cannot be had is said by `MissingError`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

QEMU = "qemu-aarch64-static"
PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
VERSION = "3.11"  # of that Python
WHEELS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
# ONNX Runtime asks the kernel which processor this is, and stops if it is told of another kind's. qemu looks into its
# own folder first.
_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""


class MissingError(Exception):
    """Something that this machine cannot get."""


def system(folder: Path) -> Path:
    """Debian's Python for ARM, unpacked below a folder; the root of it. Raises `MissingError`."""
    for tool in (QEMU, "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingError(f"there is no {tool}")
    root = folder / "root"
    if (root / "proc" / "cpuinfo").is_file():
        return root  # from an earlier run
    state, cache = folder / "apt-state", folder / "apt-cache"
    for each in (state / "lists" / "partial", cache / "archives" / "partial"):
        each.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": str(state),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(cache),
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "install", "-y", "--no-install-recommends", "--download-only", *PACKAGES])
    for package in sorted((cache / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(_CPUINFO, encoding="ascii")
    return root


def install(pip: list[str], wheel: Path, constraints: Path, folder: Path) -> None:
    """A wheel with the [cpu] extra and what it needs, as pip chooses it for such a machine. Raises `MissingError`."""
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [word for tag in WHEELS for word in ("--platform", tag)]
    chosen = ["--python-version", VERSION, "--only-binary", ":all:", *platforms]
    _run([*pip, "install", "--quiet", "-c", str(constraints), *chosen, "--target", str(folder), f"{wheel}[cpu]"])


def command(root: Path, packages: Path) -> list[str]:
    """The words that begin a command of that Python."""
    python = root / "usr" / "bin" / f"python{VERSION}"
    return ["env", f"PYTHONPATH={packages}", "PYTHONNOUSERSITE=1", QEMU, "-L", str(root), str(python)]


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        raise MissingError(f"{words[0]} {words[-1]} failed ({said})")
