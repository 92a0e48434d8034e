"""`titans serve`: one memory per user, behind an OpenAI-compatible server.

Knows the options. What is served is `titans_serve`'s knowledge.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Literal

import click

from titans_cli.options import bundle_argument, json_option
from titans_cli.terminal import print_json, say


@click.command(
    epilog="""\b
Examples:
  titans serve model.titans
  titans serve model.titans --port 9000 --store sqlite:memories.db
  titans serve model.titans --host 0.0.0.0 --keys keys.txt --store redis://localhost
  titans serve model.titans --ray --replicas 2:8 --store redis://localhost
  curl localhost:8000/v1/completions -d '{"prompt": "def main():", "max_tokens": 32}'"""
)
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need --keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--store", "address", default="sqlite:titans-memories.db", show_default=True,
    help="Where memories are kept: sqlite:FILE, redis://HOST, postgresql://HOST/DATABASE, or a folder.",
)  # fmt: skip
@click.option(
    "--keys", "key_file", type=click.Path(path_type=Path),
    help="File with one 'NAME KEY' a line. Each key has memories of its own.",
)  # fmt: skip
@click.option(
    "--encrypt", "cipher_file", type=click.Path(path_type=Path),
    help="File with encryption keys, 64 hexadecimal digits a line; memories are stored encrypted by the first.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="Store memories with eight bits a number: a quarter of the room.")
@click.option("--journal", is_flag=True, help="Keep the token ids of all that new memories read and write.")
@click.option(
    "--other-model", type=click.Choice(["refuse", "adopt", "replay"]), default="refuse", show_default=True,
    help="What becomes of memories that another model has saved.",
)  # fmt: skip
@click.option("--provider", default="auto", show_default=True, help="Where it runs; titans doctor lists them.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads per graph.  [default: one per core it may use]")
@click.option("--lanes", type=click.IntRange(1), default=16, show_default=True, help="Streams that one call steps.")
@click.option("--turns", type=click.IntRange(1), default=64, show_default=True, help="Answers under way at most.")
@click.option(
    "--waiting", type=click.IntRange(0), default=256, show_default=True,
    help="Answers that may wait for a place; more are refused with status 429.",
)  # fmt: skip
@click.option("--resident", type=click.IntRange(1), default=256, show_default=True, help="Memories kept open.")
@click.option("--ray", "on_ray", is_flag=True, help="Serve with replicas of Ray Serve, which share the store.")
@click.option(
    "--replicas", default="2", show_default=True, callback=lambda _ctx, _param, value: _bounds(value),
    help="With --ray: how many, or LEAST:MOST for as many as the load asks for.",
)  # fmt: skip
@json_option
def serve(
    bundle: Path,
    host: str,
    port: int,
    address: str,
    key_file: Path | None,
    cipher_file: Path | None,
    int8: bool,
    journal: bool,
    other_model: Literal["refuse", "adopt", "replay"],
    provider: str,
    threads: int | None,
    lanes: int,
    turns: int,
    waiting: int,
    resident: int,
    on_ray: bool,
    replicas: tuple[int, int],
    as_json: bool,
) -> None:
    """Serve a bundle over HTTP, with a memory for each user.

    The routes are those of OpenAI's API: chat completions, completions, responses, models; and memories.

    A request that names a memory ("memory": "alice") is read by that memory, which is stored before the answer ends.
    Without one, the history that a client sends again is recognised and not read twice. http://HOST:PORT/ is a page to
    talk on, /openapi.json lists the routes, /metrics is for Prometheus. Requests are logged to stderr as JSON lines,
    without their texts. SIGINT and SIGTERM finish the answers under way, then stop.

    Memories of another model are refused. With --other-model adopt the numbers of a memory stay as they are, for
    another precision of the checkpoint or a successor of the same shape. With --other-model replay the model reads the
    journal again.

    With --ray, replicas on this machine, or on the cluster of RAY_ADDRESS, serve any memory of the shared store. Paths
    and the store's address have to mean the same on every machine. Each replica takes --turns answers.

    With --json, stdout is one JSON document that is written when the server listens.
    """
    from titans_runtime import load
    from titans_serve.app import Server
    from titans_serve.keys import Keys, read_keys
    from titans_serve.listen import JsonLines, bind, is_loopback, run
    from titans_serve.service import Service
    from titans_serve.settings import Settings
    from titans_serve.stores import SealedStore, everywhere, open_store, read_cipher, without_password

    keys = Keys({}) if key_file is None else read_keys(key_file)
    if not keys.required and not is_loopback(host):
        raise click.UsageError(f"--host {host} is reached by other machines; give --keys FILE, or listen on 127.0.0.1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings = Settings(
        lanes=lanes,
        turns=turns,
        waiting=waiting,
        resident=resident,
        int8=int8,
        journal=journal,
        other_model=other_model,
    )
    if on_ray:
        from titans_serve.ray_serve import Replica, Scale, serve_until_stopped

        least, most = replicas
        replica = Replica(
            bundle.resolve(), everywhere(address), bundle.name.removesuffix(".titans"), _whole(key_file),
            _whole(cipher_file), provider, threads, settings,
        )  # fmt: skip
        with bind(host, port) as free:  # a port of 0 becomes one that is free
            port = free.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        report = {
            "url": f"http://{shown}:{port}", "model": replica.name, "store": without_password(address),
            "keys": keys.required, "replicas": [least, most],
        }  # fmt: skip

        def ready() -> None:
            if as_json:
                print_json(report)
            else:
                say(f"{replica.name} listens on {report['url']} with Ray Serve; press Ctrl-C to stop")

        serve_until_stopped(replica, Scale(least, most, ongoing=turns + waiting), host, port, ready)
        return
    cipher = None if cipher_file is None else read_cipher(cipher_file)
    model = load(bundle, provider, threads)
    with bind(host, port) as listener:
        store = open_store(address)
        if cipher is not None:
            store = SealedStore(store, cipher)
        service = Service(model, store, settings, bundle.name.removesuffix(".titans"))
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        if as_json:
            print_json({"url": url, "model": service.name, "store": without_password(address), "keys": keys.required})
        else:
            say(f"{service.name} listens on {url} (memories in {without_password(address)}); press Ctrl-C to stop")
        run(Server(service, keys).app(), listener, service.stop)


def _bounds(value: str) -> tuple[int, int]:
    """`N` or `LEAST:MOST` as two counts. Raises `click.BadParameter`."""
    counts = [int(part) if part.isdecimal() else 0 for part in value.split(":")]
    if len(counts) > 2 or not 0 < counts[0] <= counts[-1]:
        raise click.BadParameter(f"{value!r} is not a count like 2, or LEAST:MOST like 2:8")
    return counts[0], counts[-1]


def _whole(path: Path | None) -> Path | None:
    """A path that other processes understand."""
    return None if path is None else path.resolve()
