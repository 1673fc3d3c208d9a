"""One real Triton server for the session, made by `make setup-triton`. Missing, it is an error, never a skip."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.testing.triton import TritonServer
from inference import repository
from inference.repository import Device, Layout, Options

STAND_IN = '''
"""The network on ONNX Runtime inside the Python backend: what the onnxruntime backend does, which this server lacks."""
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            names = ("input_ids", "attention_mask")
            feed = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names}
            (vectors,) = self.session.run(["embedding"], feed)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("embedding", vectors)]))
        return responses
'''


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as `walvec model export` writes it."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    asyncio.run(repository.export(folder, Options(instances=1)))
    return folder


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The production layout, its network served by the Python backend."""
    folder = tmp_path_factory.mktemp("triton") / "ensemble"
    options = Options(layout=Layout.ENSEMBLE, device=Device.CPU, instances=1, tokenizers=1)
    asyncio.run(repository.export(folder, options))
    network = folder / "all-minilm-l6-v2-network"
    config = (network / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    (network / "config.pbtxt").write_text(config.replace('backend: "onnxruntime"', 'backend: "python"', 1))
    config = (network / "config.pbtxt").read_text()
    (network / "config.pbtxt").write_text(config.replace('default_model_filename: "model.onnx"\n', "", 1))
    (network / "1" / "model.py").write_text(STAND_IN)
    return folder


@pytest.fixture(scope="session")
def shared_triton(models: Path) -> Iterator[TritonServer]:
    with TritonServer(models) as server:
        yield server


@pytest.fixture
def triton(shared_triton: TritonServer) -> TritonServer:
    """The server, running, whatever the test before did to it."""
    shared_triton.thaw()
    return shared_triton.start()


@pytest.fixture
def model_folder(models: Path, tmp_path: Path) -> Path:
    """A copy of the python model's version folder."""
    return Path(shutil.copytree(models / "all-minilm-l6-v2" / "1", tmp_path / "1"))
