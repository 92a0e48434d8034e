"""The server as a Ray Serve deployment: replicas on one machine or many that share a store of memories.

Every replica is the whole of `titans serve`. Any of them serves any memory, because each looks at the store's version
before it goes on from a memory that it has open. Knows Ray Serve. Does not know routes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from titans_format.install import install
from titans_runtime import InputError, load
from titans_serve.app import Server
from titans_serve.keys import Keys, read_keys
from titans_serve.service import Service
from titans_serve.settings import Settings
from titans_serve.stores import SealedStore, open_store, read_cipher

# Ray reads these when it is imported. It tells nobody that it runs, and waits for a machine that is busy.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}


@dataclass(frozen=True)
class Replica:
    """What one replica serves. Paths and addresses have to mean the same on every machine.

    bundle: its folder.
    store: address of the shared store.
    name: of the model, for clients; None is that of the bundle.
    keys, cipher: files of API keys and of encryption keys; None is none.
    provider, threads: as in `titans_runtime.load`.
    settings: limits of one replica.
    """

    bundle: Path
    store: str
    name: str | None = None
    keys: Path | None = None
    cipher: Path | None = None
    provider: str = "auto"
    threads: int | None = None
    settings: Settings = field(default_factory=Settings)

    def app(self) -> Starlette:
        """The application of one replica, in its process. Raises `TitansError`."""
        keys = Keys({}) if self.keys is None else read_keys(self.keys)
        store = open_store(self.store)
        if self.cipher is not None:
            store = SealedStore(store, read_cipher(self.cipher))
        model = load(self.bundle, self.provider, self.threads)
        name = self.name or self.bundle.name.removesuffix(".titans")
        return Server(Service(model, store, self.settings, name), keys).app()


@dataclass(frozen=True)
class Scale:
    """How many replicas there are.

    least, most: with both equal the number is fixed; else Ray follows the load between them.
    ongoing: requests of one replica at the same time, and twice the load that Ray aims at.
    cpus, gpus: what Ray reserves for one replica.
    """

    least: int = 2
    most: int = 2
    ongoing: int = 128
    cpus: float = 1.0
    gpus: float = 0.0


def application(replica: Replica, scale: Scale | None = None) -> Any:
    """An application for `ray.serve.run`, or for a `import_path` of Ray's configuration files.

    Raises:
        InputError: Ray is not installed.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from ray import serve
    except ImportError as error:
        raise InputError(f"Ray Serve is not installed ({error})", f"run: {install('ray')}") from error
    scale = scale or Scale()
    size: dict[str, Any] = {"num_replicas": scale.least}
    if scale.most > scale.least:
        goal = max(1, scale.ongoing // 2)
        bounds = {"min_replicas": scale.least, "max_replicas": scale.most, "target_ongoing_requests": goal}
        size = {"autoscaling_config": bounds}

    def app() -> Starlette:  # Ray calls it in every replica, if it is a function and nothing else that can be called
        return replica.app()

    made: Any = serve.deployment(
        serve.ingress(app)(_Replica),
        name="titans",
        max_ongoing_requests=scale.ongoing,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        **size,
    )
    return made.bind()


class _Replica:
    """What Ray makes an actor of; the application does the work."""


def serve_until_stopped(replica: Replica, scale: Scale, host: str, port: int, on_ready: Any) -> None:
    """Run replicas behind Ray's proxy until SIGINT or SIGTERM.

    Joins the cluster of RAY_ADDRESS where that is set, and begins one on this machine elsewhere.

    Raises:
        InputError: Ray is not installed, or the application did not start.
    """
    built = application(replica, scale)
    import ray
    from ray import serve

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if "RAY_ADDRESS" not in os.environ:  # a cluster of this machine's own, which nobody else reaches
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(**options)
    try:
        serve.start(http_options={"host": host, "port": port})
        try:
            serve.run(built, name="titans", route_prefix="/")
        except Exception as error:
            reason = " ".join(str(error).split())[-400:]
            raise InputError(
                f"the replicas did not start ({reason})", "run titans serve without --ray to see why"
            ) from error
        on_ready()
        _wait()
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _wait() -> None:
    """Until SIGINT or SIGTERM."""
    import signal
    import threading

    done = threading.Event()
    before = {number: signal.signal(number, lambda *_: done.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not done.wait(1):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
