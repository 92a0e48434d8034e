"""A model card: what a bundle is, how well it was verified, and how to load it, as the README.md of a model hub.

Knows the manifest. Claims nothing that the manifest does not say.
"""

from __future__ import annotations

import re

from titans_format.fields import TokenInputs
from titans_format.manifest import Manifest

CARD_FILE = "README.md"
LICENSE = "license"  # the entry of the provenance with an SPDX identifier
_PLAIN = re.compile(r"[^\w .,:;()+=/@%-]")  # characters that could be Markdown, HTML or YAML


def card(manifest: Manifest) -> str:
    """The text of a card, with the front matter that hubs read."""
    license_id = manifest.provenance.get(LICENSE)
    front = ["---", "library_name: titans-deploy", "tags:", "- titans", "- test-time-memory", "- onnx"]
    if isinstance(manifest.inputs, TokenInputs) and manifest.tokenizer is not None:
        front.append("pipeline_tag: text-generation")
    if license_id:
        front.append(f"license: {_plain(license_id)}")
    parts = [*front, "---", "", f"# {_plain(manifest.model.name)}", "", *_about(manifest), *_use(manifest)]
    parts += ["## Verification", "", *_verification(manifest), "", "## Licence", ""]
    parts.append(_plain(license_id) if license_id else "The maker of this bundle has not stated one.")
    if manifest.provenance:
        parts += ["", "## Where it comes from", "", "| | |", "|---|---|"]
        parts += [f"| {_plain(key)} | {_plain(value)} |" for key, value in sorted(manifest.provenance.items())]
    return "\n".join(parts) + "\n"


def _about(manifest: Manifest) -> list[str]:
    model, inputs = manifest.model, manifest.inputs
    shape = f"{inputs.vocab_size:,} tokens" if isinstance(inputs, TokenInputs) else f"{inputs.features} channels"
    return [
        "A Titans model with a memory that learns while it reads, as a bundle of ONNX graphs. The memory of every"
        " stream is an external tensor: it can be saved, restored, forked and rewound.",
        "",
        "| | |",
        "|---|---|",
        f"| variant | {_plain(model.variant)} |",
        f"| parameters | {model.parameters:,} |",
        f"| precision | {_plain(manifest.dtype)} |",
        f"| input | {shape} |",
        f"| chunk | {manifest.chunk} tokens |",
        f"| state of one stream | {manifest.stream_bytes:,} bytes |",
        "",
    ]


def _use(manifest: Manifest) -> list[str]:
    lines = [
        "## How to load it",
        "",
        "```python",
        "import titans_runtime as titans",
        "",
        'model = titans.load("ORG/NAME")',
    ]
    lines.append("session = model.session()")
    if manifest.tokenizer is not None:
        call = 'session.chat("Hello")' if manifest.chat_template else 'session.generate("Hello", max_new_tokens=64)'
        lines += [f"for piece in {call}:", '    print(piece, end="")', 'session.save("me.state")']
    use = (
        "It goes on with text, one memory for each user or document."
        if manifest.tokenizer is not None
        else "It predicts what follows in sequences of the kind that it was trained on."
    )
    return [
        *lines, "```", "", "## Intended use", "",
        f"{use} A saved memory holds what its user wrote, so treat it as personal data. The model was judged on the"
        " figures below and on nothing else; measure it on your task before you rely on it.",
        "",
    ]  # fmt: skip


def _verification(manifest: Manifest) -> list[str]:
    report = manifest.verification
    if report is None:
        return ["This bundle was not verified when it was exported."]
    lines = ["The graphs were driven beside the PyTorch model when they were exported.", "", "| | |", "|---|---|"]
    for name, value in report.items():
        if isinstance(value, float):
            lines.append(f"| {_plain(name)} | {value:.3g} |")
        elif isinstance(value, bool | int | str):
            lines.append(f"| {_plain(name)} | {_plain(value)} |")
    return lines


def _plain(value: object) -> str:
    """Text of a manifest without what would be markup."""
    return _PLAIN.sub(" ", str(value))[:300]
