"""Run by the Python of an installation: is it the wheel, does the doctor see kernels, does a bundle compute the same?

python installed.py BUNDLE REFERENCE.npz STATE

REFERENCE holds the `ids` of a stream, where its pieces begin, and the `logits` of each token from portable graphs. The
stream is fed in these pieces, and saved and restored at the `saved` token; there the file STATE is written. The last
line of output is JSON.
"""

from __future__ import annotations

import io
import json
import platform
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

import numpy as np

import titans_runtime
from titans_cli.doctor import doctor as command
from titans_runtime import native


def checked(bundle: str, reference: str, state: str) -> dict[str, object]:
    """What was seen."""
    wanted = np.load(reference)
    said = io.StringIO()
    with redirect_stdout(said):
        command(["--json"], standalone_mode=False)
    doctor = {provider["name"]: provider for provider in json.loads(said.getvalue())["providers"]}
    model = titans_runtime.load(bundle, provider="cpu", threads=1)
    session, worst = model.session(), 0.0
    for piece in np.split(np.arange(len(wanted["ids"])), wanted["pieces"]):
        logits = session.feed(wanted["ids"][piece], all_logits=True)
        worst = max(worst, float(np.abs(logits - wanted["logits"][piece]).max()))
        if session.position == int(wanted["saved"]):
            session.save(state)
            session = model.restore(state)
    library = native.kernels()
    return {
        "machine": platform.machine(),
        "version": version("titans-deploy"),
        "from": str(Path(titans_runtime.__file__).parent),
        "cpu": doctor["cpu"]["status"],
        "doctor": doctor["cpu"]["detail"],
        "kernels": None if library is None else library.isa,
        "max_difference": worst,
        "tokens": len(wanted["ids"]),
    }


if __name__ == "__main__":
    print(json.dumps(checked(*sys.argv[1:])))
