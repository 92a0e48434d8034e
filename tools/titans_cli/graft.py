"""`titans graft`: from a pretrained language model to a checkpoint with a memory.

Knows the options. Imports PyTorch only when the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from titans_cli.graft_options import GraftOptions, layer_list
from titans_cli.options import json_option
from titans_cli.terminal import print_json, progress_bar, say
from titans_cli.threads import threads_option, torch_threads

if TYPE_CHECKING:
    from titans_core.decoder import Decoder
    from titans_core.pretrained import Pretrained


@click.command(
    epilog="""\b
Examples:
  titans graft SmolLM2-135M-Instruct.gguf --out checkpoint
  titans graft Qwen2.5-0.5B-Instruct --out checkpoint --window 512 --read 0,4 --set memory.dim=1024
  titans graft TinyLlama-1.1B --out checkpoint --memory-layers 10,20 --set memory.heads=8
  titans graft SmolLM2-135M-Instruct.gguf --out plain --no-memory --window 1024"""
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint directory to make.")
@click.option(
    "--window",
    type=click.IntRange(2),
    help="Tokens that attention sees, the query's own included.  [default: 256, or what the model was trained with]",
)
@click.option(
    "--sinks",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="First tokens of a stream that stay visible behind the window.",
)
@click.option(
    "--read",
    callback=layer_list,
    metavar="LAYERS",
    help="Layers whose inputs the memory reads; 0 is the embedding. It answers behind the last norm.  [default: 0,4]",
)
@click.option(
    "--memory-layers",
    callback=layer_list,
    metavar="LAYERS",
    help="Put a memory into the stream of these layers instead.",
)
@click.option("--no-memory", is_flag=True, help="Leave the model without a memory: a window and its sinks alone.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set an option: memory.dim, any other of the memory such as memory.heads, place (before or beside attention),"
    " chunk, prefill; repeatable.",
)
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer.json to take instead of the model's.")
@click.option(
    "--data",
    multiple=True,
    metavar="SOURCE",
    help="Text that keys are whitened on: a file, or stdlib; repeatable.  [default: Python's own documentation]",
)
@click.option("--seed", default=0, show_default=True, help="Of the memory's first weights.")
@threads_option("those that this process may use")
@json_option
def graft(
    model: Path,
    out: Path,
    window: int | None,
    sinks: int,
    read: tuple[int, ...] | None,
    memory_layers: tuple[int, ...] | None,
    no_memory: bool,
    overrides: tuple[str, ...],
    tokenizer: Path | None,
    data: tuple[str, ...],
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Give a pretrained language model a memory, and leave a checkpoint.

    MODEL is a Hugging Face folder with safetensors or a .gguf file, of the architectures llama, mistral, qwen2, qwen3
    and smollm3. Its files are copied and stay as they are. A fresh memory changes nothing: until it is trained, the
    model answers as before, with attention over a window and the first tokens. titans train and titans export go on
    from the checkpoint.
    """
    torch_threads(threads)
    import torch

    from titans_core.pretrained import decoder_of, open_pretrained
    from titans_core.training.backbone import begin_checkpoint

    options = GraftOptions(window, sinks, read, memory_layers, no_memory, overrides)
    opened = open_pretrained(model, tokenizer)
    streaming, memory = options.build(opened.config)
    pretrained = opened.streaming(**streaming)
    with progress_bar("reading") as progress:
        decoder = decoder_of(pretrained, progress)
    torch.manual_seed(seed)
    decoder.attach(memory)
    if not _whiten(decoder, pretrained, data):
        say("the memory's keys are not whitened, as the model has no tokenizer to read text with", err=True)
    name = model.resolve().name
    with progress_bar("copying") as progress:
        begin_checkpoint(out, pretrained, decoder, name=name, progress=progress)
    new = sum(parameter.numel() for path, parameter in decoder.named_parameters() if path.startswith("graft."))
    if as_json:
        print_json(_document(out, name, decoder, new))
        return
    config = decoder.config
    say(f"{out}: {name}, {decoder.num_parameters():,} parameters, of which {new:,} are new", err=True)
    say(f"window {config.window:,}, sinks {config.sinks}; titans export makes a bundle of it", err=True)


def _document(out: Path, name: str, decoder: Decoder, new: int) -> dict[str, Any]:
    config = decoder.config
    values = config.to_dict()
    return {
        "checkpoint": str(out),
        "backbone": name,
        "architecture": config.architecture,
        "parameters": decoder.num_parameters(),
        "new_parameters": new,
        "window": config.window,
        "sinks": config.sinks,
        "chunk": config.chunk,
        "prefill": config.prefill,
        "graft": values["graft"],
    }


def _whiten(decoder: Decoder, pretrained: Pretrained, data: tuple[str, ...]) -> bool:
    """Start the memory's keys from what the read layers say of natural text; whether there was a tokenizer for it."""
    from titans_core.training.whitening import start_from_text
    from titans_tasks.tokens import parse_tokenizer

    if decoder.graft is None:
        return True
    if pretrained.texts.tokenizer_json is None:
        return False
    tokenizer = parse_tokenizer(pretrained.texts.tokenizer_json, "the model's tokenizer")
    with progress_bar("whitening") as progress:
        start_from_text(decoder, tokenizer, data, progress=progress)
    return True
