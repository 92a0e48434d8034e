"""Whether extras install into an empty environment, and whether `titans doctor` tells the truth in each.

The truth is what happens: a provider that the doctor calls ready must run a bundle, and one that it does not must be
refused with the doctor's own words. Downloads up to a gigabyte per extra, so it is a command (`make extras-check`) and
not part of the test suite.

Arguments: the wheel, a bundle, and the extras to try, by default those of `WANTED`. Runs with any Python; needs pip.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

# The provider that an extra is for, and what brings it here: ready, or, without a device, the next best answer.
WANTED = {"cpu": "cpu", "cuda": "cuda", "tensorrt-rtx": "tensorrt-rtx", "webgpu": "webgpu"}
FINE = ("ready", "no device")
ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command away from the source tree, so that what runs came out of the wheel."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd="/")


def environment(folder: Path) -> Path:
    """An empty virtual environment; its Python."""
    if run(sys.executable, "-m", "venv", folder).returncode:  # a distribution's Python may come without ensurepip
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder)
        run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "pip")
    return folder / "bin" / "python"


def problems(wheel: Path, bundle: Path, extra: str, folder: Path) -> list[str]:
    """What is wrong with one extra; [] if nothing is."""
    python = environment(folder)
    installed = run(
        python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel.resolve()}[{extra}]"
    )
    if installed.returncode:
        return [f"does not install: {installed.stderr.strip().splitlines()[-1]}"]
    titans = folder / "bin" / "titans"
    doctor = run(titans, "doctor", "--json")
    if doctor.returncode:
        return [f"titans doctor fails: {doctor.stderr.strip()}"]
    providers = json.loads(doctor.stdout)["providers"]
    print(f"[{extra}]", ", ".join(f"{entry['name']} {entry['status']}" for entry in providers), flush=True)
    found = [
        f"{entry['name']} is {entry['status']}: {entry['detail']}"
        for entry in providers
        if entry["name"] == WANTED[extra] and entry["status"] not in FINE
    ]
    for entry in providers:
        answer = run(
            titans, "run", bundle, "--prompt", "de", "--max-new-tokens", "2", "--provider", entry["name"], "--json"
        )
        where, ready, said = entry["name"], entry["status"] == "ready", answer.stderr.strip()
        if ready and answer.returncode and "titans build" not in said:
            found.append(f"{where} is called ready and fails: {said}")
        if ready and not answer.returncode and where != json.loads(answer.stdout)["provider"]:
            found.append(f"{where} was asked for and another provider ran")
        if not ready and (answer.returncode != 2 or entry["detail"] not in said):
            found.append(f"{where} is not refused with the doctor's words: {said}")
    return found


def main(wheel: Path, bundle: Path, extras: list[str]) -> int:
    """Try every extra; 1 if something is wrong with one."""
    failed = 0
    for extra in extras:
        with tempfile.TemporaryDirectory() as folder:
            for problem in problems(wheel, bundle.resolve(), extra, Path(folder) / "venv"):
                print(f"[{extra}] {problem}", flush=True)
                failed += 1
    print("extras check passed" if not failed else f"{failed} problems")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(WANTED)))
