"""``make bench-triton``: what the pipeline makes of a real Triton server, beside a bare client of the same server.

The bare client has nothing to do but ask: its texts are tokenised, sorted and cut before the clock starts, and the best
of several batch sizes and numbers in flight counts. Both work on the same rows, in turn, and every row is compared with
its embedding afterwards, outside the time. Texts are of mixed lengths: log-normal, median 28 tokens, up to 256.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import psycopg
from tritonclient.grpc import service_pb2, service_pb2_grpc

from cdc.bench import machine
from cdc.bench.figures import Figure, WrongResult, ratio, render
from cdc.testing.cluster import Cluster
from cdc.testing.consumer import Consumer
from cdc.testing.triton import TritonServer
from inference import minilm, repository
from inference.embedder import Limits
from inference.packing import pack
from inference.repository.writer import SERVED
from inference.testing import FakeModel, FakeTriton

TRIVIAL: Final = "trivial"
STATIC: Final = "static"
RUNS: Final = 5
MINILM_ROWS: Final = 3_000
TRIVIAL_ROWS: Final = 40_000
STATIC_ROWS: Final = 20_000
_LOOK_S: Final = 0.02
"""Between two looks at the count: often enough, and no load to speak of."""
WAIT_S: Final = 300.0
DEADLINE_S: Final = 300.0

_TRIVIAL_CONFIG: Final = """
backend: "python"
max_batch_size: 256
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] } ]
dynamic_batching { }
parameters { key: "milliseconds" value: { string_value: "$milliseconds" } }
"""
_TRIVIAL_MODEL: Final = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        set_to = json.loads(args["model_config"])["parameters"]["milliseconds"]["string_value"]
        self.seconds = float(set_to) / 1000

    def execute(self, requests):
        time.sleep(self.seconds)
        rows = [len(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()) for request in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("embedding", np.full((n, 384), 0.051, np.float32))])
            for n in rows
        ]
"""


# The least that still is a model: tokens, and the mean of their rows in a table (random here, which costs the same).
_STATIC_MODEL: Final = """
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from .texts import Texts, read_texts


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.texts = Texts(folder / "tokenizer.json", 256)
        self.table = np.random.default_rng(1).standard_normal((30522, 384), np.float32)

    def execute(self, requests):
        responses = []
        for request in requests:
            ids = self.texts.encode(read_texts(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()))
            vectors = np.stack([self.table[row].sum(0) for row in ids])
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", vectors)]))
        return responses
"""


def texts(rows: int, seed: int = 1) -> list[str]:
    """Return texts of mixed lengths in words of one token each, the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    words = [
        "time",
        "year",
        "people",
        "way",
        "day",
        "man",
        "thing",
        "woman",
        "life",
        "child",
        "world",
        "school",
        "state",
        "family",
        "student",
        "group",
    ]
    lengths = np.clip(rng.lognormal(np.log(26), 0.85, rows).astype(int), 1, 254)
    return [" ".join(rng.choice(words, length)) for length in lengths]


def tokens_of(text: str) -> int:
    """Return the tokens of one of :func:`texts`, the two marks around it included."""
    return min(minilm.MAX_TOKENS, 2 + len(text.split()))


class Stage:
    """One database with a full table, for as many consumers as wanted."""

    def __init__(self, cluster: Cluster, rows: Sequence[str]) -> None:
        self._database = cluster.create_database(f"bench_{secrets.token_hex(4)}")
        self.connection: psycopg.Connection[Any] = self._database.connect()
        self.connection.execute("CREATE TABLE articles (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)")
        self.connection.execute("CREATE PUBLICATION walvec FOR TABLE articles")
        self.rows = len(rows)
        with self.connection.cursor().copy("COPY articles (body) FROM STDIN") as copy:
            for text in rows:
                copy.write_row([text])
        self.connection.execute("VACUUM ANALYZE articles")
        self.connection.execute("CHECKPOINT")

    def consumer(self, url: str, model: str) -> Consumer:
        """Return a consumer with walvec's own defaults, not yet started."""
        settings = {"WALVEC_RUNTIME": "triton", "WALVEC_TRITON_URL": url, "WALVEC_MODEL": model}
        return Consumer(self._database.url, **settings)

    def embedded(self) -> int:
        """Return how many embeddings the consumer counts."""
        try:
            row = self.connection.execute("SELECT coalesce(sum(embeddings), 0) FROM walvec.progress").fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0  # the consumer has not made its tables yet
        return int(row[0]) if row else 0

    def wait(self, count: int, consumer: Consumer) -> float:
        """Wait for ``count`` embeddings; return the time of :func:`time.perf_counter`.

        Raises:
            WrongResult: they did not come.
        """
        deadline = time.perf_counter() + WAIT_S
        while self.embedded() < count:
            if time.perf_counter() > deadline or consumer.process.poll() is not None:
                raise WrongResult(f"{self.embedded()} of {count} rows. {consumer.log[-800:]}")
            time.sleep(_LOOK_S)
        return time.perf_counter()

    def check(self, consumer: Consumer) -> None:
        """Compare every row with its embedding by hash.

        Raises:
            WrongResult: they differ.
        """
        consumer.sync(WAIT_S)
        for row in consumer.verify():
            if any(row[name] for name in ("missing", "stale", "orphaned", "duplicate")):
                raise WrongResult(f"source and embeddings differ: {row}")

    def close(self) -> None:
        """Remove the database."""
        self.connection.close()
        self._database.drop()


@contextmanager
def stage(cluster: Cluster, rows: Sequence[str]) -> Iterator[Stage]:
    """Make a stage, and remove it afterwards."""
    made = Stage(cluster, rows)
    try:
        yield made
    finally:
        made.close()


# --- rows per second ------------------------------------------------------------------------------------------------


def through_pipeline(
    cluster: Cluster, server: TritonServer, model: str, rows: Sequence[str], instances: int
) -> tuple[float, float]:
    """Measure a backfill from the first embeddings that are visible to the last.

    Returns:
        Rows per second, and the share of that time in which the model computed.
    """
    with stage(cluster, rows) as made, made.consumer(server.url, model) as consumer:
        begin = made.wait(1, consumer)
        first, computed = made.embedded(), _computed_s(server, model)
        end = made.wait(made.rows, consumer)
        computed = _computed_s(server, model) - computed
        made.check(consumer)
    return (len(rows) - first) / (end - begin), computed / (end - begin) / instances


def _computed_s(server: TritonServer, model: str) -> float:
    """Return the seconds that the model has computed, over all instances, as Triton counts them per execution."""
    batches = server.statistics(model).get("batch_stats", [])
    return sum(int(batch["compute_infer"]["ns"]) for batch in batches) / 1e9


async def bare(
    server: TritonServer, model: str, batches: Sequence[bytes], sizes: Sequence[int], inflight: int
) -> float:
    """Return the rows per second of a client that does nothing but ask."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    pending = iter(zip(batches, sizes, strict=True))
    async with grpc.aio.insecure_channel(server.url.removeprefix("grpc://"), options=options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def work() -> None:
            for raw, size in pending:
                request = service_pb2.ModelInferRequest(model_name=model)
                tensor = request.inputs.add(name="text", datatype="BYTES")
                tensor.shape.extend([size, 1])
                request.raw_input_contents.append(raw)
                reply = await stub.ModelInfer(request, timeout=DEADLINE_S)
                vectors = np.frombuffer(reply.raw_output_contents[0], np.float32)
                if vectors.size != size * minilm.DIMENSION:
                    raise WrongResult(f"{vectors.size} numbers for {size} rows")

        await stub.ModelInfer(_canary(model), timeout=DEADLINE_S)  # connected before the clock starts
        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(inflight)))
        return sum(sizes) / (time.perf_counter() - begin)


def _canary(model: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="text", datatype="BYTES").shape.extend([1, 1])
    request.raw_input_contents.append(_packed(["walvec"]))
    return request


def _packed(batch: Sequence[str]) -> bytes:
    encoded = [text.encode() for text in batch]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def prepared(rows: Sequence[str], lengths: Sequence[int], most_rows: int, tokens: int) -> tuple[list[bytes], list[int]]:
    """Return packed batches of alike length and their sizes."""
    plan = pack(lengths, Limits(most_rows, tokens, minilm.MAX_TOKENS, 1))
    return [_packed([rows[i] for i in batch]) for batch in plan], [len(batch) for batch in plan]


def throughput(
    cluster: Cluster, server: TritonServer, model: str, rows: Sequence[str], target: float, instances: int = 1
) -> list[Figure]:
    """Measure both in turn, the bare client at its best setting."""
    lengths = [tokens_of(text) for text in rows]
    settings = [(most, tokens, flying) for most, tokens in ((32, 2048), (128, 8192), (256, 16384)) for flying in (2, 4)]
    sample = slice(0, len(rows) // 5)
    tried = {
        setting: asyncio.run(bare(server, model, *prepared(rows[sample], lengths[sample], *setting[:2]), setting[2]))
        for setting in settings
    }
    best = max(tried, key=lambda setting: tried[setting])
    alone, piped, shares = [], [], []
    for _ in range(RUNS):
        alone.append(asyncio.run(bare(server, model, *prepared(rows, lengths, *best[:2]), best[2])))
        rate, busy = through_pipeline(cluster, server, model, rows, instances)
        piped.append(rate)
        shares.append(busy)
    return [
        Figure(f"{model}: bare client, {best[0]} rows, {best[1]} tokens, {best[2]} in flight", "rows/s", tuple(alone)),
        Figure(f"{model}: pipeline, defaults", "rows/s", tuple(piped)),
        ratio(f"{model}: pipeline to bare client", piped, alone, target),
        Figure(f"{model}: share of the time in which the model computes for the pipeline", "x", tuple(shares)),
    ]


# --- padding --------------------------------------------------------------------------------------------------------


def padding(cluster: Cluster, rows: Sequence[str]) -> Figure:
    """Measure what the batches that leave the pipeline would be padded to: a recording server sees them."""

    async def record() -> float:
        model = FakeModel(max_batch_size=256, delay_s=0.02)
        async with FakeTriton(model) as server:
            await asyncio.to_thread(_embed_all, cluster, server.url, rows)
        real = computed = 0
        for batch in model.requests:
            lengths = [tokens_of(text.decode()) for text in batch]
            real += sum(lengths)
            computed += max(lengths) * len(lengths)
        return computed / real

    return Figure("padded to real tokens, mixed lengths", "x", (asyncio.run(record()),), 1.10, "lower")


def _embed_all(cluster: Cluster, url: str, rows: Sequence[str]) -> None:
    with stage(cluster, rows) as made, made.consumer(url, "fake") as consumer:
        made.wait(made.rows, consumer)


# --- recovery -------------------------------------------------------------------------------------------------------

OUTAGE_S: Final = 8.0
_WINDOW_S: Final = 1.0
_SAMPLE_S: Final = 0.02


def recovery(cluster: Cluster, server: TritonServer, rows: Sequence[str]) -> Figure:
    """Measure, after an outage of 8 s, how long after the server is ready the rows flow at their former rate."""
    with stage(cluster, rows) as made, made.consumer(server.url, TRIVIAL) as consumer:
        made.wait(len(rows) // 20, consumer)
        before = _rate(made, 2.0)
        server.kill()
        time.sleep(OUTAGE_S)
        server.start()
        ready = time.perf_counter()
        seen = [(ready, made.embedded())]
        while seen[-1][0] < ready + 8.0 and seen[-1][1] < made.rows:
            time.sleep(_SAMPLE_S)
            seen.append((time.perf_counter(), made.embedded()))
        made.check(consumer)
    for index, (start, count) in enumerate(seen):
        later = next((entry for entry in seen[index:] if entry[0] >= start + _WINDOW_S), None)
        if later is None:
            break
        if (later[1] - count) / (later[0] - start) >= 0.9 * before:
            return Figure("recovery to 90 % of the rate after an outage", "s", (start - ready,), 1.0, "lower")
    raise WrongResult(f"The rate of {before:.0f} rows/s did not come back within 8 s.")


def _rate(made: Stage, seconds: float) -> float:
    start, count = time.perf_counter(), made.embedded()
    time.sleep(seconds)
    return (made.embedded() - count) / (time.perf_counter() - start)


# --- all of it ------------------------------------------------------------------------------------------------------


def trivial(folder: Path, milliseconds: float) -> Path:
    """Write a repository with a model that waits so long per batch and gives every text the same vector."""
    version = folder / TRIVIAL / "1"
    version.mkdir(parents=True)
    config = f'name: "{TRIVIAL}"{_TRIVIAL_CONFIG.replace("$milliseconds", str(milliseconds))}'
    (folder / TRIVIAL / "config.pbtxt").write_text(config)
    (version / "model.py").write_text(_TRIVIAL_MODEL)
    return folder


def static(folder: Path) -> Path:
    """Write a repository with the model of :data:`_STATIC_MODEL`."""
    version = folder / STATIC / "1"
    version.mkdir(parents=True)
    (folder / STATIC / "config.pbtxt").write_text(f'name: "{STATIC}"{_TRIVIAL_CONFIG.replace("$milliseconds", "0")}')
    (version / "model.py").write_text(_STATIC_MODEL)
    shutil.copyfile(SERVED / "texts.py", version / "texts.py")
    shutil.copyfile(minilm.TOKENIZER_FILE, version / "tokenizer.json")
    return folder


def main(args: Sequence[str]) -> int:
    """Run what ``args`` name (all without a name), print the figures; return 1 for a wrong result."""
    known = ("minilm", "static", "trivial", "padding", "recovery")
    chosen = [name for name in args if not name.startswith("-")] or list(known)
    if wrong := [name for name in chosen if name not in known]:
        print(f"bench-triton: {wrong[0]} is none of {', '.join(known)}.", file=sys.stderr)
        return 2
    figures: list[Figure] = []
    before = machine.load()
    with tempfile.TemporaryDirectory() as temporary, Cluster.create("18", fsync=True) as cluster:
        cluster.start()
        for name in chosen:
            try:
                figures += _one(name, Path(temporary) / name, cluster)
            except WrongResult as exc:
                print(f"bench-triton: {name}: wrong result: {exc}", file=sys.stderr)
                return 1
            print(f"  {name}: done (load average {machine.load()})", file=sys.stderr, flush=True)
    print(f"{machine.describe('18')}, Triton 2.51; load average {before} before, {machine.load()} after")
    print(json.dumps([figure.to_json() for figure in figures], indent=2) if "--json" in args else render(figures))
    return 0


def _one(name: str, folder: Path, cluster: Cluster) -> list[Figure]:
    folder.mkdir()
    if name == "padding":
        return [padding(cluster, texts(5_000))]
    if name == "minilm":
        asyncio.run(repository.export(folder / "models", repository.Options(instances=2)))
        models = folder / "models"
    elif name == "static":
        models = static(folder / "models")
    else:
        models = trivial(folder / "models", 0.0 if name == "trivial" else 20.0)
    with TritonServer(models) as server:
        server.start()
        if name == "minilm":
            return throughput(cluster, server, minilm.NAME, texts(MINILM_ROWS), 0.95, 2)
        if name == "static":
            return throughput(cluster, server, STATIC, texts(STATIC_ROWS), 0.6)
        if name == "trivial":
            return throughput(cluster, server, TRIVIAL, texts(TRIVIAL_ROWS), 0.6)
        return [recovery(cluster, server, texts(60_000))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
