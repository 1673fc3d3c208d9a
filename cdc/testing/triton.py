"""A real Triton Inference Server of our own: started, killed, frozen, its models unloaded, by tests and benchmarks.

    with TritonServer(repository) as server:
        server.start()
        TritonEmbedder("all-minilm-l6-v2", [server.url])

The server is the one that ``make setup-triton`` puts into ``.venv-triton/``; it needs no GPU. It listens on 127.0.0.1
alone, on ports that it keeps over restarts. A guard process ends it, and removes its shared memory, when this process
ends in whatever way.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cdc.errors import WalvecError
from cdc.testing.ports import TRIES, free_ports

ENVIRONMENT: Final = Path(__file__).parents[2] / ".venv-triton"
"""Where ``make setup-triton`` puts the server."""

PORTS: Final = range(12_000, 20_000)  # below PostgreSQL's in cluster.py, and below the ephemeral range
SHARED_MEMORY: Final = Path("/dev/shm")
_EXIT_TIMEOUT_S: Final = 5
# When its standard input closes, because the owner is done or dead: end the server's whole session.
_GUARD: Final = 'read -r _; kill -9 "-$1" 2>/dev/null; rm -f -- "$2"*'


class TritonError(WalvecError):
    """The server could not be found or started, or did not do what was asked; the sentence says what mends it."""


class TritonServer:
    """One Triton server over one model repository; a context manager that ends it.

    Args:
        repository: The model repository.
        environment: Where the server is installed.
        options: Further command line options of ``tritonserver``.
    """

    def __init__(self, repository: Path, *, environment: Path = ENVIRONMENT, options: Sequence[str] = ()) -> None:
        self.repository = repository
        self.grpc_port, self.http_port, self.metrics_port = _free_ports(3)
        self._environment = environment
        self._options = list(options)
        self._memory_prefix = f"walvec_{os.getpid()}_{secrets.token_hex(3)}_"
        self._log = Path(tempfile.mkstemp(prefix="walvec-triton-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    # --- addresses ----------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL for walvec."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """The base URL of the HTTP endpoints."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        """All that the server has logged, every run of it."""
        return self._log.read_text("utf-8", "replace")

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it is not running."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    # --- life ---------------------------------------------------------------------------------------------------

    def spawn(self) -> Self:
        """Start the server; nothing is waited for.

        Raises:
            TritonError: it is not installed.
        """
        program = self._environment / "bin" / "tritonserver"
        if not (self._environment / ".complete").exists():
            raise TritonError(f"There is no Triton server in {self._environment}: run `make setup-triton`.")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, *self._arguments()],
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the models' own processes belong to it, and Ctrl-C is for us
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "walvec-guard", str(self._process.pid), SHARED_MEMORY / self._memory_prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start the server, where it is not running, and wait until all its models are ready.

        Raises:
            TritonError: it is not installed, ended, or was not ready in time; with the end of its log.
        """
        if self.pid is None:
            self.spawn()
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until the server and all the models that it has are ready.

        Raises:
            TritonError: it ended, or was not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if self.pid is None or time.monotonic() > deadline:
                raise TritonError(f"Triton was not ready. {self.log_tail()}")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        """Return whether the server says it is ready; False where it does not answer."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/v2/health/ready", timeout=2.0) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def stop(self, timeout_s: float = 30.0) -> None:
        """Stop the server as an operator does, with SIGTERM: requests in flight are answered first."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TritonError(f"Triton did not stop within {timeout_s:g} s. {self.log_tail()}") from None
        self._sweep()

    def kill(self) -> None:
        """Send SIGKILL, as a crash or the kernel's out-of-memory killer would; returns when all of it is gone."""
        models = self._children()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._sweep()
        deadline = time.monotonic() + _EXIT_TIMEOUT_S
        while any(map(_runs, models)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill_models(self) -> None:
        """Send SIGKILL to the processes in which Python models run; the server stays and does not heal."""
        for pid in self._children():
            os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the server's process with SIGSTOP: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        self._log.unlink(missing_ok=True)

    # --- models -------------------------------------------------------------------------------------------------

    def load(self, model: str) -> None:
        """Load a model, or load it again where its files have changed; returns when it is loaded.

        Raises:
            TritonError: the server refused; with its words.
        """
        self._post(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str, *, wait: bool = True, timeout_s: float = 30.0) -> None:
        """Unload a model and wait until it is gone; requests in flight are answered first.

        A model whose process was killed never gets there (Triton 2.51), but can be loaded again: do not wait for it.

        Raises:
            TritonError: the server refused; with its words.
        """
        self._post(f"/v2/repository/models/{model}/unload", {"parameters": {"unload_dependents": True}})
        deadline = time.monotonic() + timeout_s
        while wait and any(entry["name"] == model and entry.get("state") != "UNAVAILABLE" for entry in self.index()):
            if time.monotonic() > deadline:
                raise TritonError(f"Triton did not unload {model}. {self.log_tail()}")
            time.sleep(0.02)

    def index(self) -> list[dict[str, Any]]:
        """Return the repository's index: name, version, state and reason of every model."""
        found: list[dict[str, Any]] = self._post("/v2/repository/index", {})
        return found

    def statistics(self, model: str) -> dict[str, Any]:
        """Return the model's statistics as Triton's statistics extension has them."""
        with urllib.request.urlopen(f"{self.http_url}/v2/models/{model}/stats", timeout=10.0) as reply:
            stats: dict[str, Any] = json.load(reply)["model_stats"][0]
        return stats

    # --- parts --------------------------------------------------------------------------------------------------

    def log_tail(self, lines: int = 25) -> str:
        """The end of the server's log, without the tables of its settings."""
        told = [line for line in self.log.splitlines() if line[:1] not in ("|", "+", "")]
        return "Its log ends:\n" + "\n".join(told[-lines:])

    def _arguments(self) -> list[str]:
        arguments = [
            f"--model-repository={self.repository}",
            f"--backend-directory={self._environment.resolve() / 'backends'}",
            # A prefix of its own, because a killed server leaves its shared memory behind.
            f"--backend-config=python,shm-region-prefix-name={self._memory_prefix}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--allow-gpu-metrics=false",
            "--cuda-memory-pool-byte-size=0:0",
            "--pinned-memory-pool-byte-size=0",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
        ]
        for name, port in (("grpc", self.grpc_port), ("http", self.http_port), ("metrics", self.metrics_port)):
            arguments += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
        return arguments + self._options

    def _variables(self) -> dict[str, str]:
        """Return the environment: PATH says which Python the models run in, the library path which libpython."""
        home = self._environment.resolve()
        libraries = next((home / "lib").glob("python3.*/site-packages/nvidia_pytriton.libs"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WALVEC_", "PG"))}
        return {
            **kept,
            "PATH": f"{home / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{(home / 'libdir').read_text().strip()}:{libraries}",
        }

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _children(self) -> list[int]:
        pid = self.pid
        tasks = Path(f"/proc/{pid}/task")
        lists = [task / "children" for task in tasks.iterdir()] if pid is not None else []
        return [int(child) for children in lists for child in children.read_text().split()]

    def _sweep(self) -> None:
        """Let the guard end what is left of the server's session, and remove its shared memory."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.http_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60.0) as reply:
                content = reply.read()
        except urllib.error.HTTPError as error:
            words = error.read().decode("utf-8", "replace")
            raise TritonError(f"Triton refused {path}: {words}") from None
        return json.loads(content) if content else None


def _runs(pid: int) -> bool:
    """Return whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    found = free_ports(count, PORTS)
    if len(found) < count:
        raise TritonError(f"No {count} free TCP ports among {TRIES} tried between {PORTS.start} and {PORTS.stop}.")
    return found
