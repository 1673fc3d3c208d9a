"""What an exported repository is to be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from inference import minilm
from inference.errors import ModelMisconfigured

_RANGES = (
    ("instances", 0, 64),
    ("threads", 1, 64),
    ("tokenizers", 1, 64),
    ("max_batch_size", 1, 1024),
    ("queue_requests", 1, 1_000_000),
    ("queue_timeout_s", 0.001, 3600),
)


class Layout(StrEnum):
    """How the model is divided."""

    PYTHON = "python"
    ENSEMBLE = "ensemble"


class Precision(StrEnum):
    """What the network computes in. FP16 is for GPUs."""

    FP32 = "fp32"
    FP16 = "fp16"


class Device(StrEnum):
    """Where the network runs."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


@dataclass(frozen=True, slots=True)
class Options:
    """What to write.

    Attributes:
        model: The name that clients ask for.
        layout: One Python model, or tokenizer and network apart.
        precision: What the network computes in.
        device: Where the network runs.
        instances: Copies of the network that compute at the same time; 0: what suits the device.
        threads: Threads of one copy on the CPU.
        tokenizers: Tokenizer processes of the ensemble.
        max_batch_size: Most rows of a request, and of a dynamic batch.
        queue_requests: Most requests that wait; the next is refused, and comes again later.
        queue_timeout_s: How long a request may wait before it is refused; a client may ask for less.
    """

    model: str = minilm.NAME
    layout: Layout = Layout.PYTHON
    precision: Precision = Precision.FP32
    device: Device = Device.CPU
    instances: int = 0
    threads: int = 1
    tokenizers: int = 2
    max_batch_size: int = 256
    queue_requests: int = 256
    queue_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ModelMisconfigured: FP16 on the CPU, TensorRT or FP16 in the python layout, or a number out of range.
        """
        if not self.model or not all(c.isalnum() or c in "._-" for c in self.model):
            raise _refused("a model's name is made of letters, digits, '.', '_' and '-'")
        if self.layout is Layout.PYTHON and self.precision is Precision.FP16:
            raise _refused("the python layout computes in fp32: give --layout ensemble with --precision fp16")
        if self.layout is Layout.PYTHON and self.device is Device.TENSORRT:
            raise _refused("TensorRT needs the network as a model of its own: give --layout ensemble")
        if self.device is Device.CPU and self.precision is Precision.FP16:
            raise _refused("fp16 is slower than fp32 on a CPU: give --device cuda or tensorrt with it")
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                raise _refused(f"{name} is a number from {least} to {most}")

    @property
    def copies(self) -> int:
        """Instances, decided: two cores are used best by two copies of one thread, a GPU by one copy."""
        return self.instances or (2 if self.device is Device.CPU else 1)


def _refused(what: str) -> ModelMisconfigured:
    return ModelMisconfigured(f"{what[0].upper()}{what[1:]}.", reason="bad_export")
