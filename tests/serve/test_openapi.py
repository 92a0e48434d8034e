"""The server keeps its OpenAPI document: what the document allows, and much that it does not, is answered soundly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import Start
from titans_serve.keys import Keys
from titans_serve.settings import Settings


@pytest.mark.slow
def test_no_request_makes_the_server_fail(start: Start, tmp_path: Path) -> None:
    """schemathesis: every operation, with sound and unsound requests of its own making."""
    server = start(settings=Settings(most_tokens=4), keys=Keys({}))
    program = Path(sys.executable).with_name("schemathesis")
    checks = "not_a_server_error,unsupported_method,negative_data_rejection,status_code_conformance"
    result = subprocess.run(
        [
            str(program), "run", f"{server.url}/openapi.json", "--checks", checks, "--max-examples", "4", "--seed", "1",
            "--phases", "coverage,fuzzing", "--request-timeout", "60", "--generation-database", "none", "--no-color",
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Tested: 22" in result.stdout
