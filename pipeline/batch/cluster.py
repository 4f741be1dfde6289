"""Workers of a batch on the nodes of a Ray cluster (extra ``cluster``).

Each actor holds the worker that a process of this machine holds, and hears and says the same. Paths, orders and
messages go through the cluster; frames do not: inputs and the output folder lie where all nodes see them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import queue
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines import default_artifact
from pipeline.batch.crew import Died, Link
from pipeline.batch.machine import WORKER_BYTES
from pipeline.batch.state import artifact_digest
from pipeline.batch.worker import THREAD_VARIABLES, Worker, WorkerOptions
from pipeline.errors import PipelineError, SettingsError
from pipeline.redaction import redact

log = logging.getLogger(__name__)

CONNECT_S: Final = 10.0
_LISTEN_S: Final = 2.0  # an actor answers at least so often
_ADDRESS: Final = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\]):(?P<port>\d{1,5})"
)
_COMPARED: Final = ("pose2seg-live", "numpy", "numba", "opencv-python-headless", "av", "onnxruntime", "onnx")
"""Packages whose version may change a bit of a result."""


def require_ray() -> Any:
    """The library.

    Raises:
        SettingsError: it is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingsError('--cluster needs Ray, which is not installed: pip install "pose2seg-live[cluster]"')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    return ray


def check_address(text: str) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        SettingsError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if text != "auto" and not (found and 0 < int(found["port"]) < 65536):
        raise SettingsError(
            f"--cluster must be auto or the HOST:PORT that `ray start --head` printed, got {redact(text)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What the nodes of a cluster have together: cores, GPUs, and how many workers of so many cores fit on them."""

    cores: int
    gpus: int
    nodes: int
    workers: int


class RayCluster:
    """A connection to a cluster; to be closed."""

    def __init__(self, address: str) -> None:
        """Connect; nothing runs there yet.

        Args:
            address: ``auto`` for the cluster that this machine is part of, or HOST:PORT of its head.

        Raises:
            SettingsError: Ray is missing, or the address cannot be.
            PipelineError: nobody answers, or another version does.
        """
        check_address(address)
        self._ray = ray = require_ray()
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS") or "auto"
        if address != "auto":
            _require_answer(address)
        try:
            ray.init(
                address=address,
                namespace=f"pose2seg-{secrets.token_hex(6)}",
                logging_level=logging.ERROR,
                configure_logging=False,
                log_to_driver=False,
                include_dashboard=None,
            )
        except Exception as error:
            text = redact(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            if "ersion mismatch" in str(error):
                raise PipelineError(
                    f"--cluster {address}: it runs other versions of Ray or Python than this machine "
                    f"(here Ray {ray.__version__}, Python {platform.python_version()}): install the same everywhere "
                    f"({redact(' '.join(str(error).split()))[:300]})"
                ) from error
            raise PipelineError(
                f"--cluster {address}: cannot be joined ({text}): start Ray on this machine, too, with "
                "`ray start --address=HOST:PORT`, or `ray start --head` for a cluster of one"
            ) from error

    def has_gpus(self) -> bool:
        return any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in self._ray.nodes())

    def capacity(self, *, threads: int, gpu: bool) -> Capacity:
        """What is there.

        Args:
            threads: cores of one worker.
            gpu: a worker takes a GPU.
        """
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        resources = [node["Resources"] for node in nodes]
        cores = [int(found.get("CPU", 0)) for found in resources]
        gpus = [int(found.get("GPU", 0)) for found in resources]
        memory = [int(found.get("memory", 0)) // WORKER_BYTES for found in resources]
        by_node = [
            min(cpu // threads, room, *([count] if gpu else []))
            for cpu, count, room in zip(cores, gpus, memory, strict=True)
        ]
        return Capacity(cores=sum(cores), gpus=sum(gpus), nodes=len(nodes), workers=sum(by_node))

    def crew(self, options: WorkerOptions, *, gpu: bool) -> RayCrew:
        """Workers on it.

        Args:
            options: of each.
            gpu: each takes a GPU.
        """
        return RayCrew(self._ray, options, gpu=gpu)

    def close(self) -> None:
        """Leave the cluster; what this batch started there ends."""
        self._ray.shutdown()


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PipelineError(
            f"--cluster {address}: nobody answers there ({reason}): check the address with `ray status` on the head, "
            "and that its port is open to this machine"
        ) from error


def describe_machine(model: Path | None) -> dict[str, str]:
    """What may change a bit of a result: versions, the kind of processor, and the model.

    Args:
        model: folder; None is the one that is installed.
    """
    folder = default_artifact() if model is None else model
    try:
        found = {"model": artifact_digest(folder)[:12]}
    except OSError:
        found = {"model": "not there"}
    found["python"] = platform.python_version()
    for name in _COMPARED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["processor"] = _processor()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


class ClusterWorker:
    """The actor: a worker in a thread, and queues to it and from it. Its methods are called by `RayCrew`."""

    def __init__(self, options: WorkerOptions, token: str) -> None:
        self._options = options
        self._token = token
        self._orders: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ended = threading.Event()
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def tell(self, message: tuple[Any, ...]) -> None:
        """To the worker."""
        self._orders.put(message)

    def listen(self, timeout_s: float) -> list[tuple[Any, ...]]:
        """What the worker has said; waits for it, at most so long. None at the end: it has gone."""
        heard: list[tuple[Any, ...]] = []
        with contextlib.suppress(queue.Empty):
            heard.append(self._said.get(timeout=timeout_s))
            while True:
                heard.append(self._said.get_nowait())
        if not heard and self._ended.is_set():
            heard.append(("gone",))
        return heard

    def _work(self) -> None:
        try:
            node = socket.gethostname()
            self._said.put(("machine", node, describe_machine(self._options.file.settings.model)))
            try:
                seen = (self._options.out / MARKER).read_text()
            except OSError:
                seen = ""
            if seen != self._token:
                text = (
                    f"node {node} does not see {self._options.out} as this machine does: put --out on storage that all "
                    "nodes share, under the same path"
                )
                self._said.put(("fatal", SettingsError.exit_code, text))
                return
            Worker(_Queues(self._orders, self._said), self._options).run()
        finally:
            self._ended.set()


MARKER: Final = ".pose2seg/cluster"


@dataclass(frozen=True, slots=True)
class _Queues:
    orders: queue.SimpleQueue[tuple[Any, ...]]
    said: queue.SimpleQueue[tuple[Any, ...]]

    def send(self, message: tuple[Any, ...], /) -> None:
        self.said.put(message)

    def recv(self) -> tuple[Any, ...]:
        return self.orders.get()


@dataclass(slots=True, eq=False)
class RayLink:
    """The way to one actor."""

    ray: Any
    actor: Any
    waiting: Any  # reference of the `listen` that is under way
    node: str = "a node"

    def send(self, *message: Any) -> None:
        with contextlib.suppress(Exception):  # it is dead: `RayCrew.listen` hears of it
            self.actor.tell.remote(message)

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor)


class RayCrew:
    """Actors of a cluster. See `pipeline.batch.crew.Crew`."""

    patient = True
    deaths_allowed = 3  # nodes come and go

    def __init__(self, ray: Any, options: WorkerOptions, *, gpu: bool) -> None:
        self._ray = ray
        self._options = options
        self._gpu = gpu
        self._token = secrets.token_hex(16)
        self._links: list[RayLink] = []
        self._mine = describe_machine(options.file.settings.model)
        self._engines: tuple[str, Any] | None = None
        self._processors = {self._mine["processor"]}
        marker = options.out / MARKER
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(self._token)

    def start(self) -> Link:
        threads = self._options.file.settings.threads or 1
        variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        actor = (
            self._ray.remote(ClusterWorker)
            .options(
                num_cpus=threads,
                num_gpus=1 if self._gpu else 0,
                memory=WORKER_BYTES,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=4,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": variables},
            )
            .remote(self._options, self._token)
        )
        link = RayLink(self._ray, actor, actor.listen.remote(_LISTEN_S))
        self._links.append(link)
        return link

    def listen(self, timeout_s: float) -> Iterator[tuple[Link, tuple[Any, ...] | Died]]:
        by_reference = {link.waiting: link for link in self._links}
        if not by_reference:
            threading.Event().wait(timeout_s)
            return
        ready, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=timeout_s)
        if ready:  # and whatever else is there by now
            ready, _ = self._ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        for reference in ready:
            link = by_reference[reference]
            try:
                heard = self._ray.get(reference)
                link.waiting = link.actor.listen.remote(_LISTEN_S)
            except Exception as error:
                self._links.remove(link)
                yield link, self._death(link, error)
                continue
            for message in heard:
                yield from self._said(link, message)

    def end(self) -> None:
        # Who has nothing in work has nothing to lose, and who has was killed by the batch: nobody is waited for.
        for link in self._links:
            link.kill()
        self._links.clear()
        (self._options.out / MARKER).unlink(missing_ok=True)

    def _said(self, link: RayLink, message: tuple[Any, ...]) -> Iterator[tuple[Link, tuple[Any, ...] | Died]]:
        if message[0] == "machine":
            link.node = message[1]
            self._compare(link.node, message[2])
        elif message[0] == "ready":
            self._compare_engines(link.node, message[1]["engines"])
            yield link, message
        elif message[0] != "gone":
            yield link, message

    def _compare(self, node: str, machine: dict[str, str]) -> None:
        other = [
            f"{name} {version} there, {self._mine[name]} here"
            for name, version in machine.items()
            if name != "processor" and version != self._mine[name]
        ]
        if other:
            raise PipelineError(
                f"node {node} has something else installed ({'; '.join(other)}), so its results would differ: "
                "install the same everywhere"
            )
        if machine["processor"] not in self._processors:
            self._processors.add(machine["processor"])
            log.warning(
                "node %s has another processor (%s): results may differ from those of one machine in the last bit",
                node,
                machine["processor"],
            )

    def _compare_engines(self, node: str, engines: list[str]) -> None:
        if self._engines is None:
            self._engines = (node, engines)
        elif engines != self._engines[1]:
            raise PipelineError(
                f"node {node} runs the networks with {', '.join(engines)}, node {self._engines[0]} with "
                f"{', '.join(self._engines[1])}, so results would differ: name one with --engine and --device"
            )

    def _death(self, link: RayLink, error: Exception) -> Died:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ImportError):
            raise PipelineError(f"a node cannot load pose2seg-live ({cause}): install it on every node") from error
        text = " ".join(str(error).split())
        if "ModuleNotFoundError" in text or "No module named" in text:
            raise PipelineError(
                "a node cannot load pose2seg-live (" + redact(text)[-200:] + "): install it on every node"
            ) from error
        said = next((word for word in ("node died", "node was terminated", "unexpected") if word in text.lower()), "")
        reasons = {"node died": "the loss of its node", "node was terminated": "the loss of its node"}
        hint = "probably out of memory, try more --threads" if "out of memory" in text.lower() else ""
        log.debug("actor on %s: %s", link.node, redact(text))
        return Died(cause=reasons.get(said, f"the end of its process on {link.node}"), hint=hint)
