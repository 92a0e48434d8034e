"""Real genomes: the next base of a strain that training never saw, with memory and without.

    python -m studies.quality.genomes --data DIR

DIR has FASTA files, one for each strain of a kind, compressed or not, such as `S.Aureus/references` of Debian's package
`ragout-examples`. The last one by name, or the one that `--held-out` names, is judged by; the others are trained on.
All are cut into records of 32,768 bases, so that streams begin everywhere. For each seed: a mac with memory, which is
also judged reset, frozen and with its writes off, and one of attention alone.

Knows the recipe and the tables. Does not know how bases are judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studies.quality.recipes import shape
from studies.quality.spread import shown, spread, table
from studies.quality.work import Study, options, write
from titans_tasks.dna import read_fasta

SEEDS = (0, 1, 2)
PIECE = 32_768  # bases of a record
STEPS = 300
SIZE = shape("mac", 32, memory__depth=1, memory__heads=1)
RECIPE = (*SIZE, "--window-tokens", 128, "--batch", 8, "--steps", STEPS, "--lr", "3e-3", "--threads", 1)
ASK = ("--shortest", 8192, "--longest", 8192, "--window", 128)
ENDINGS = (".fasta", ".fa", ".fna", ".fasta.gz", ".fa.gz", ".fna.gz")
MODES = ("kept", "reset", "frozen", "writes_off")


def main() -> None:
    """Everything, for the seeds that are named."""
    parser = options(__doc__, SEEDS)
    parser.add_argument("--data", type=Path, required=True, help="folder of FASTA files, one for each strain")
    parser.add_argument("--held-out", help="name of the file to judge by (default the last by name)")
    arguments = parser.parse_args()
    strains = sorted(path for path in arguments.data.iterdir() if path.name.endswith(ENDINGS))
    names = [path.name for path in strains]
    held_out = arguments.held_out or names[-1]
    if held_out not in names or len(names) < 2:
        raise SystemExit(f"{arguments.data} needs two FASTA files or more, {held_out} among them; it has {names}")
    train, judge = (arguments.out / f"genomes-{part}.fasta" for part in ("train", "held-out"))
    cut([path for path in strains if path.name != held_out], train)
    cut([path for path in strains if path.name == held_out], judge)
    study = Study(arguments.out, arguments.threads)
    found = summary([one_seed(study, train, judge, seed) for seed in arguments.seeds])
    write(
        arguments.out / "genomes.json", {"trained": [n for n in names if n != held_out], "held_out": held_out, **found}
    )
    print(tables(found))
    if arguments.plot:
        draw(found, arguments.plot)


def cut(strains: Sequence[Path], out: Path) -> None:
    """The records of FASTA files in pieces of `PIECE` bases, as one file; the same file again where nothing changed."""
    lines = []
    for path in strains:
        for record in read_fasta([str(path)]):
            pieces = (record.data[start : start + PIECE] for start in range(0, len(record.data), PIECE))
            lines += [f">{path.name}-{number}\n{piece.decode()}\n" for number, piece in enumerate(pieces)]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines), encoding="ascii")


def one_seed(study: Study, train: Path, judge: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The reports of the model and of attention alone."""
    reports = {}
    for kind, control in (("memory", ()), ("attention", ("--control", "attention-only"))):
        name = f"genomes-{kind}-{seed}"
        study.train(name, "--task", "dna", "--data", train, *RECIPE, "--seed", seed, *control)
        reports[kind] = study.evaluate(name, study.export(name), "--task", "dna", "--data", judge, *ASK)
    return reports


def summary(reports: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Bits per base over the seeds: of the memory in every mode, and of attention alone."""
    first = reports[0]["memory"]
    bits = {
        mode: spread([report["memory"]["bits_per_base"][mode] for report in reports])
        for mode in MODES
        if mode in first["bits_per_base"]
    }
    bits["attention only"] = spread([report["attention"]["bits_per_base"]["kept"] for report in reports])
    positions = [
        {
            "start": place["start"],
            "stop": place["stop"],
            **{
                kind: spread([report[kind]["positions"][number]["kept"] for report in reports])
                for kind in ("memory", "attention")
            },
        }
        for number, place in enumerate(first["positions"])
    ]
    return {"records": len(first["documents"]), "bases": first["bases"], "bits_per_base": bits, "positions": positions}


def tables(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [(mode.replace("_", " "), shown(bits, 4)) for mode, bits in found["bits_per_base"].items()]
    return table(("", f"bits per base, {found['bases']:,} bases"), rows)


def draw(found: dict[str, Any], path: Path) -> None:
    """Bits per base by position in the record; bars are one standard deviation over the seeds."""
    from titans_measure.quality.plots import picture

    with picture(path) as axes:
        stops = [place["stop"] for place in found["positions"]]
        for kind in ("memory", "attention"):
            values = [place[kind] for place in found["positions"]]
            means, deviations = [v["mean"] for v in values], [v["deviation"] for v in values]
            axes.errorbar(stops, means, deviations, fmt="o-", label=kind)
        axes.set(xscale="log", xlabel="bases up to", ylabel="bits per base", title="a strain that was never trained on")
        axes.legend()


if __name__ == "__main__":
    main()
