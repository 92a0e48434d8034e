"""Builds everything that is published, and tries it: all of a release but the upload.

python -m scripts.release.make --out dist/release

The wheels are built from the source archive, so that what is in it is enough. Each is audited, installed into an empty
environment of its own kind of machine, and held to streams that the portable graphs computed here. The last line is
JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import click

from scripts.release import emulated
from scripts.release.platforms import AARCH64, PLATFORMS, X86_64, Platform
from scripts.release.reference import CLOSE, Reference, references

ROOT = Path(__file__).resolve().parents[2]
KERNELS = "titans_runtime/native/titans_kernels.so"
CHECK = Path(__file__).with_name("installed.py")
NEEDED = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "runtime/titans_runtime/native/operators.cpp")


@dataclass
class Report:
    """What was made, and what each check saw."""

    files: dict[str, int] = field(default_factory=dict)
    checks: list[dict[str, str | float | bool]] = field(default_factory=list)

    def add(self, check: str, seen: str, ok: bool | None = True, **values: float) -> None:
        """Says it at once. `ok` is None where a check could not run here."""
        state = {True: "ok", False: "FAILED", None: "not run"}[ok]
        print(f"{state:8} {check}: {seen}", flush=True)
        self.checks.append({"check": check, "state": state, "seen": seen, **values})

    @property
    def failed(self) -> bool:
        """Whether anything was seen that should not be."""
        return any(check["state"] == "FAILED" for check in self.checks)


def run(words: list[str], **settings: str) -> str:
    """What a command prints. One that fails ends the release."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/", env={**os.environ, **settings})
    if done.returncode:
        raise click.ClickException(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def source_archive(out: Path, report: Report, folder: Path) -> Path:
    """The archive, unpacked: a folder that wheels are built from."""
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), str(ROOT)])
    (archive,) = out.glob("titans_deploy-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    missing = [name for name in NEEDED if name not in names]
    built = sorted(name for name in names if name.endswith((".so", ".pyc")) or "node_modules" in name)
    report.add("source archive", f"{len(names)} files; missing {missing}; built {built[:3]}", not missing and not built)
    return tree


def wheel(platform: Platform, tree: Path, out: Path, report: Report) -> Path:
    """A platform's wheel from the unpacked archive."""
    settings = {
        "CXX": " ".join(platform.compiler),
        "TITANS_WHEEL_PLATFORM": platform.tag,
        "ZIG_GLOBAL_CACHE_DIR": str(ROOT / "build" / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(ROOT / "build" / "zig"),
    }
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", name, str(tree)]
        run(command, **settings)
        (made,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(made) as opened:
            library = opened.read(KERNELS)
        report.add(
            f"kernels for {platform.name}",
            f"{len(library)} bytes",
            library.startswith(platform.magic),
            bytes=len(library),
        )
        if platform.audited:
            made = audited(platform, made, Path(name), report)
        return Path(shutil.move(made, out / made.name))


def audited(platform: Platform, made: Path, folder: Path, report: Report) -> Path:
    """A wheel for Linux, with the tag of the oldest systems that it runs on."""
    auditwheel = [sys.executable, "-m", "auditwheel"]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run([*auditwheel, "repair", "--wheel-dir", str(folder / "repaired"), str(made)], PATH=tools)
    (repaired,) = (folder / "repaired").glob("*.whl")
    said = run([*auditwheel, "show", str(repaired)], PATH=tools)
    found = re.search(r'platform tag:\s*"([^"]+)"', said)
    with zipfile.ZipFile(repaired) as opened:
        grafted = [name for name in opened.namelist() if ".libs/" in name]
    seen = f"{found[1] if found else said.strip()}; libraries grafted into it: {grafted or 'none'}"
    report.add(f"auditwheel, {platform.name}", seen, bool(found and found[1].startswith("manylinux_")) and not grafted)
    return repaired


def environment(folder: Path, what: Path) -> Path:
    """An empty environment with a wheel or an archive, and its [cpu] extra; its Python."""
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False)
    if made.returncode:  # a distribution's Python may come without ensurepip
        shutil.rmtree(folder)
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        run([sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet", "pip"])
    python = folder / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), f"{what}[cpu]"]
    run(command, TITANS_KERNELS="")  # an archive compiles them
    return python


def tried(name: str, python: list[str], held_to: list[Reference], folder: Path, report: Report) -> None:
    """Whether an installation says that it has kernels, and computes what it should."""
    for each in held_to:
        state = folder / f"{each.bundle.stem}.state"
        state.unlink(missing_ok=True)  # of another installation
        settings = {"TITANS_KERNELS": ""}
        said = run([*python, str(CHECK), str(each.bundle), str(each.file), str(state)], **settings)
        seen = json.loads(said.splitlines()[-1])
        back = each.rest(state)
        fine = seen["kernels"] and seen["cpu"] == "ready" and str(ROOT / "runtime") not in seen["from"]
        fine = fine and max(seen["max_difference"], back) <= CLOSE
        text = (
            f"{seen['machine']}, doctor: {seen['doctor']}; {seen['tokens']} tokens differ by"
            f" {seen['max_difference']:.1e}; its state goes on here, {back:.1e}"
        )
        values = {"max_difference": seen["max_difference"], "state_back": back}
        report.add(f"{name}, {each.bundle.stem}", text, bool(fine), **values)


def tried_on_arm(made: Path, held_to: list[Reference], folder: Path, report: Report) -> None:
    """The same on the other processor, where it can be emulated."""
    try:
        root = emulated.system(ROOT / "build" / "arm64")
        pip, packages = [sys.executable, "-m", "pip"], ROOT / "build" / "arm64" / "packages"
        emulated.install(pip, made, ROOT / "constraints.txt", packages)
    except emulated.MissingError as problem:
        report.add("wheel for aarch64 under emulation", str(problem), None)
        return
    tried("wheel for aarch64 under emulation", emulated.command(root, packages), held_to, folder, report)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "dist" / "release", show_default="dist/release")
def main(out: Path) -> None:
    """Make the source archive and the wheels, and try them."""
    report, out = Report(), out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.environ["TITANS_KERNELS"] = "off"  # here: what is compared must not be the same code
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = source_archive(out, report, folder / "tree")
        os.environ.pop("TITANS_KERNELS")
        wheels = {platform.name: wheel(platform, tree, out, report) for platform in PLATFORMS}
        os.environ["TITANS_KERNELS"] = "off"
        held_to = references(folder)
        tried("wheel for x86-64", [str(environment(folder / "wheel", wheels[X86_64.name]))], held_to, folder, report)
        (archive,) = out.glob("*.tar.gz")
        tried("source archive", [str(environment(folder / "source", archive))], held_to, folder, report)
        tried_on_arm(wheels[AARCH64.name], held_to, folder, report)
    report.add("wheel for arm64 macOS", "cross-compiled; there is nothing here to run it on", None)
    report.files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    for file, size in report.files.items():
        print(f"made     {file}, {size / 2**20:.2f} MiB")
    print(json.dumps({"ok": not report.failed, "files": report.files, "checks": report.checks}))
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
