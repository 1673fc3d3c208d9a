"""A Triton model repository for MiniLM, written to a folder and proved before it is put there.

Two layouts. ``python`` is one model of the Python backend: any Triton can serve it, with no GPU. ``ensemble`` is for
production on GPUs: tokenizer instances on the CPU feed the network on ONNX Runtime, with CUDA or TensorRT, in FP32 or
FP16. Both take texts and give vectors under one name, so a client changes nothing between them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from inference.errors import ModelMisconfigured
from inference.repository.checks import Agreement, check_files
from inference.repository.options import Device, Layout, Options, Precision
from inference.repository.writer import write

__all__ = ["Agreement", "Device", "Layout", "Options", "Precision", "export"]


async def export(output: Path, options: Options, *, replace: bool = False) -> tuple[list[str], Agreement]:
    """Write the models into the repository ``output``, beside what else is there, once they are proved.

    Returns:
        The names of the models, and how well their vectors agree with those in process.

    Raises:
        ModelMisconfigured: a model of that name is there and is not to be replaced, the folder cannot be written, a
            package is missing, or the vectors differ.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        # Beside the repository, not in it: a server that polls would load half a model.
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.resolve().parent) as staging:
            names = write(Path(staging), options)
            taken = [name for name in names if (output / name).exists()]
            if taken and not replace:
                raise ModelMisconfigured(
                    f"{output} has a model {taken[0]} already: choose another folder, or give --force to replace it.",
                    reason="bad_export",
                )
            agreement = await check_files(Path(staging), options)
            for name in reversed(names):  # the ensemble last: it needs the others
                shutil.rmtree(output / name, ignore_errors=True)
                (Path(staging) / name).rename(output / name)
    except OSError as error:
        raise ModelMisconfigured(
            f"{output} cannot be written ({error.strerror}): choose another folder.", reason="bad_export"
        ) from error
    return names, agreement
