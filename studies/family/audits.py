"""Audit models of other packages: `titans audit` on each of `studies.family.peers`, and the table of the documents.

Installs every package into a folder of its own, without its dependencies, because several have the same import name.

    python -m studies.family.audits --packages FOLDER [--noise 20] [--only NAME] [--out audits.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("causal", "batch", "prefix", "split", "repeat", "noise")
WORDS = {True: "ok", False: "**fails**", None: "–"}


@dataclass(frozen=True)
class Peer:
    """A package and the factories that build its models.

    Attributes:
        requirement: the version that is installed.
        factories: names in `studies.family.peers`, with options of the audit.
        beside: what it imports that `make setup` does not bring.
    """

    requirement: str
    factories: dict[str, tuple[str, ...]]
    beside: tuple[str, ...] = ()


PEERS = {
    "titans-memory": Peer(
        "titans-memory==0.3.0", {f"titans_memory_{name}": () for name in ("mac", "mag", "mal", "lmm")}
    ),
    "titans-trainer": Peer("titans-trainer==0.1.1", {"titans_trainer": ()}),
    "tptt": Peer("tptt==0.12.1", {"tptt": ()}, beside=("peft==0.21.2",)),
    "open-titans": Peer(
        "open-titans==1.1.0",
        {"open_titans_mac": (), "open_titans_mag": (), "open_titans_mal": ()},
    ),
    "titans-unofficial": Peer(
        "titans-unofficial==2.0.0",
        {
            "titans_unofficial_mac": (),
            "titans_unofficial_mac_persisting": ("--reset", "reset_memory"),
            "titans_unofficial_mag": (),
            "titans_unofficial_mal": (),
        },
    ),
    "python-titans-miras": Peer("python-titans-miras==0.0.1", {"python_titans_miras": ()}),
    "titans-pytorch": Peer("titans-pytorch==0.5.5", {"titans_pytorch_mac": (), "titans_pytorch_memory": ()}),
}


def install(peer: Peer, folder: Path) -> None:
    """Put a package into `folder`, unless it is there."""
    if folder.is_dir():
        return
    # Read, and not built: some ask for a newer Python than they need.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--ignore-requires-python", "--target", str(folder)]
    subprocess.run([*pip, "--no-deps", peer.requirement, *peer.beside], check=True)


def audited(factory: str, options: tuple[str, ...], folder: Path, noise: float) -> dict[str, Any]:
    """The report of one model, or what went wrong."""
    command = [sys.executable, "-m", "titans_cli.main", "audit", f"studies.family.peers:{factory}", "--json"]
    paths = [folder, ROOT, ROOT / "export", ROOT / "runtime", ROOT / "tools"]
    path = os.pathsep.join(map(str, paths))
    found = subprocess.run(
        [*command, "--noise", str(noise), "--threads", "1", *options],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode not in (0, 1):
        return {"error": found.stderr.strip().splitlines()[-1:]}
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def table(reports: dict[str, dict[str, Any]]) -> str:
    """The reports as a Markdown table."""
    lines = [f"| model | {' | '.join(CHECKS)} |", f"|---|{'---|' * len(CHECKS)}"]
    for name, report in reports.items():
        cells = [WORDS[report[check]] for check in CHECKS] if "ok" in report else [str(report["error"])] * len(CHECKS)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Install, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="a folder to install the packages into")
    parser.add_argument("--noise", type=float, default=20.0, help="seconds of training on random tokens for each")
    parser.add_argument("--only", choices=sorted(PEERS), action="append", help="one package; repeatable")
    parser.add_argument("--out", type=Path, help="a file for all reports")
    options = parser.parse_args()
    reports: dict[str, dict[str, Any]] = {}
    for name in options.only or PEERS:
        folder = options.packages.resolve() / name
        install(PEERS[name], folder)
        for factory, extra in PEERS[name].factories.items():
            reports[factory] = audited(factory, extra, folder, options.noise)
            print(factory, {check: reports[factory].get(check) for check in CHECKS}, file=sys.stderr)
            if options.out is not None:
                options.out.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    print(table(reports))


if __name__ == "__main__":
    main()
