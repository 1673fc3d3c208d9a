"""``make bench-gpu``: texts per second of a GPU that walvec's batcher feeds through Triton, beside the bare model loop.

A model of MiniLM's size with random weights (``torch_model.py``) runs on PyTorch in FP16. The loop computes
ready batches of several sizes and the best counts; walvec sends texts, so tokenizing, packing, the network and the
reply are on its side of the scale. ``--cpu`` runs the same small, to see that it works where there is no GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cdc.bench import machine
from cdc.bench.figures import Figure, render
from cdc.testing.triton import ENVIRONMENT, TritonServer
from inference import minilm
from inference.embedder import Limits
from inference.packing import pack
from inference.registry import make_embedder
from inference.repository.writer import SERVED

MODEL: Final = "minilm-random"
SOURCE: Final = SERVED / "torch_model.py"
LENGTHS: Final = (16, 128, 512)
LOOP_ROWS: Final = (32, 128, 512, 1024)
INSTANCES: Final = (1, 2)
BATCH_ROWS: Final = (256, 1024)
INFLIGHT: Final = (4, 8)
LEAST_SHARE: Final = 0.9
LEAST_BUSY: Final = 90.0

_CONFIG: Final = f"""
name: "{MODEL}"
backend: "python"
max_batch_size: 1024
input [ {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] }} ]
instance_group [ {{ count: COUNT kind: KIND }} ]
dynamic_batching {{ }}
"""


def gpu() -> str | None:
    """Return the name of the first GPU, None where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def has_torch() -> bool:
    """Return whether Triton's environment can import PyTorch."""
    python = ENVIRONMENT / "bin" / "python"
    return subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0


def loop(tokens: int, rows: int, seconds: float, device: str) -> float:
    """Return the texts per second of the bare model loop, in a process of its own."""
    command = [str(ENVIRONMENT / "bin" / "python"), str(SOURCE), str(tokens), str(rows), str(seconds), device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def repository(folder: Path, instances: int, device: str) -> Path:
    """Write the model's repository."""
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    config = _CONFIG.replace("COUNT", str(instances)).replace(
        "KIND }", f"KIND_{'CPU' if device == 'cpu' else 'GPU'} }}"
    )
    (folder / MODEL / "config.pbtxt").write_text(config)
    shutil.copyfile(SOURCE, version / "model.py")
    shutil.copyfile(SERVED / "texts.py", version / "texts.py")
    shutil.copyfile(minilm.TOKENIZER_FILE, version / "tokenizer.json")
    return folder


@contextmanager
def busy() -> Iterator[list[float]]:
    """Give a list that holds, afterwards, the GPU's busy share in percent, five times a second."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0", "-lms", "200"]
    found: list[float] = []
    try:
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield found
        return
    try:
        yield found
    finally:
        watcher.terminate()
        out, _ = watcher.communicate()
        found += [float(line) for line in out.splitlines() if line.strip().isdigit()]


async def feed(url: str, tokens: int, rows: int, inflight: int, seconds: float) -> float:
    """Return the texts per second of walvec's embedder with windows cut by its packer."""
    embedder = make_embedder("triton", MODEL, triton_urls=[url], request_timeout_s=60)
    await embedder.start()
    texts = ["word " * (tokens - 2)] * rows * inflight
    plan = pack([tokens] * len(texts), Limits(rows, rows * tokens, 512, inflight))
    done, stop = 0, time.perf_counter() + seconds + 2.0
    counted_from = time.perf_counter() + 2.0  # the first two seconds warm up
    turns = iter(range(1 << 60))

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < stop:
            batch = plan[next(turns) % len(plan)]
            await embedder.embed([texts[i] for i in batch])
            if time.perf_counter() >= counted_from:
                done += len(batch)

    await asyncio.gather(*(work() for _ in range(inflight)))
    elapsed = time.perf_counter() - counted_from
    await embedder.close()
    return done / elapsed


def measure(device: str, lengths: Sequence[int], seconds: float, small: bool) -> list[Figure]:
    """Return, for each length, the best of the loop and of walvec, their ratio and the GPU's busy share."""
    loop_rows, instances = (LOOP_ROWS[:1], INSTANCES[:1]) if small else (LOOP_ROWS, INSTANCES)
    batch_rows, inflight = ((32,), (2,)) if small else (BATCH_ROWS, INFLIGHT)
    alone = {tokens: max(loop(tokens, rows, seconds, device) for rows in loop_rows) for tokens in lengths}
    fed: dict[int, list[tuple[float, float, str]]] = {tokens: [] for tokens in lengths}
    for count in instances:
        with tempfile.TemporaryDirectory() as folder, TritonServer(repository(Path(folder), count, device)) as server:
            server.start(120)
            for tokens in lengths:
                for rows in batch_rows:
                    for flying in inflight:
                        with busy() as shares:
                            rate = asyncio.run(feed(server.url, tokens, rows, flying, seconds))
                        share = statistics.median(shares) if shares else 0.0
                        fed[tokens].append((rate, share, f"{count} instances, {rows} rows, {flying} in flight"))
    figures = []
    for tokens in lengths:
        rate, share, how = max(fed[tokens])
        figures += [Figure(f"{tokens} tokens: bare loop", "rows/s", (alone[tokens],))]
        figures += [Figure(f"{tokens} tokens: {text}", "rows/s", (each,)) for each, _, text in sorted(fed[tokens])]
        figures += [Figure(f"{tokens} tokens: best ({how}) to bare loop", "x", (rate / alone[tokens],), LEAST_SHARE)]
        if share:
            figures += [Figure(f"{tokens} tokens: GPU busy, best", "%", (share,), LEAST_BUSY)]
    return figures


def main(args: Sequence[str]) -> int:
    """Measure and print; return 2 where there is no GPU or no PyTorch."""
    name = gpu()
    if name is None and "--cpu" not in args:
        print("bench-gpu: there is no NVIDIA GPU here (nvidia-smi found none): run it on a machine that has one.")
        return 2
    if not has_torch():
        print("bench-gpu: Triton's environment has no PyTorch: run `GPU=1 tools/setup_triton.sh`.")
        return 2
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    small = "--cpu" in args
    figures = measure("cpu" if small else "cuda", LENGTHS[:1] if small else LENGTHS, 2.0 if small else 5.0, small)
    print(f"{'the CPU' if small else name}; {machine.describe('-')}")
    print(json.dumps([figure.to_json() for figure in figures], indent=2) if "--json" in args else render(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
