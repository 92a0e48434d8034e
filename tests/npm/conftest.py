"""titans-runtime, compiled once, and Node and Chromium as the tests speak to them."""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from titans_runtime.arrays import FloatArray

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "runtime" / "npm"
HERE = Path(__file__).parent


class RefusalError(Exception):
    """An error that the package threw, by its code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def floats(text: str) -> FloatArray:
    """An array as the commands spell it."""
    return np.frombuffer(base64.b64decode(text), np.float32)


def spelt(array: FloatArray) -> str:
    """The same the other way."""
    return base64.b64encode(np.ascontiguousarray(array, np.float32).tobytes()).decode()


def answer_of(answer: dict[str, Any]) -> Any:
    """The value of an answer. Raises what the package threw."""
    if "error" in answer:
        raise RefusalError(answer["error"], answer["message"])
    return answer["value"]


class Node:
    """A process of Node with the package in it."""

    def __init__(self) -> None:
        command = ["node", str(HERE / "driver.mjs"), str(PACKAGE / "dist" / "index.js")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, do: str, **arguments: Any) -> Any:
        """What a command gives."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "Node has ended"
        return answer_of(json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


@pytest.fixture(scope="session")
def package() -> Path:
    """The package's folder, compiled where it is not up to date."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool}")
    if not (PACKAGE / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("the packages of npm are not there; run scripts/npm_packages.sh")
    with (PACKAGE / "node_modules" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = PACKAGE / "dist" / "index.js"
        newest = max(path.stat().st_mtime for path in (PACKAGE / "src").iterdir())
        if not made.is_file() or made.stat().st_mtime < newest:
            done = subprocess.run(["npm", "run", "build"], cwd=PACKAGE, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            made.touch()
    return PACKAGE


@pytest.fixture(scope="module")
def node(package: Path) -> Iterator[Node]:
    """Node, for all tests of a module."""
    process = Node()
    yield process
    process.close()
