"""What `walvec model export` writes, without a server."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from cdc.cli import app
from inference import minilm, repository
from inference.errors import ModelMisconfigured
from inference.repository import Device, Layout, Options, Precision, checks, writer
from inference.repository.served import texts as served

REFERENCE = Path(__file__).parents[2] / "deploy" / "triton"
LAYOUTS = {
    "python": (Options(), {"": "python.pbtxt"}),
    "ensemble": (
        Options(layout=Layout.ENSEMBLE, precision=Precision.FP16, device=Device.TENSORRT),
        {"": "ensemble.pbtxt", "-tokenizer": "tokenizer.pbtxt", "-network": "network.pbtxt"},
    ),
}


def config_of(folder, name):
    return text_format.Parse((folder / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_configurations_are_those_that_are_written(layout):
    options, templates = LAYOUTS[layout]
    for suffix, template in templates.items():
        file = REFERENCE / layout / f"{options.model}{suffix}" / "config.pbtxt"
        assert file.read_text() == writer.render(template, options)


@pytest.mark.parametrize(
    ("layout", "device"),
    [("python", "cpu"), ("python", "cuda"), ("ensemble", "cpu"), ("ensemble", "cuda"), ("ensemble", "tensorrt")],
)
def test_every_line_of_a_configuration_is_one_that_triton_knows(layout, device):
    options = Options(layout=Layout(layout), device=Device(device), instances=3, max_batch_size=64, queue_requests=9)
    for template in LAYOUTS[layout][1].values():
        config = text_format.Parse(writer.render(template, options), model_config_pb2.ModelConfig())
        assert config.max_batch_size == 64
        if template in ("python.pbtxt", "network.pbtxt"):
            assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
            assert config.dynamic_batching.priority_levels == 2
            (group,) = config.instance_group
            assert group.count == 3
            assert (group.kind == group.KIND_CPU) == (device == "cpu")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"precision": Precision.FP16}, "--layout ensemble"),
        ({"device": Device.TENSORRT}, "--layout ensemble"),
        ({"layout": Layout.ENSEMBLE, "precision": Precision.FP16}, "slower"),
        ({"model": "a/b"}, "name is made of"),
        ({"threads": 0}, "1 to 64"),
        ({"instances": -1}, "0 to 64"),
        ({"max_batch_size": 0}, "1 to 1024"),
    ],
)
def test_what_cannot_work_is_refused(wrong, words):
    with pytest.raises(ModelMisconfigured, match=words):
        Options(**wrong)


def test_the_command_writes_a_model_once(tmp_path):
    def run(*more):
        return CliRunner().invoke(app, ["model", "export", "--output", str(tmp_path / "models"), *more])

    done = run()
    assert done.exit_code == 0, done.output
    assert "Compared with walvec in process: " in done.output
    again = run()
    assert "has a model all-minilm-l6-v2 already" in str(again.exception)
    assert run("--force").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]
    assert sorted(path.name for path in (tmp_path / "models" / minilm.NAME / "1").iterdir()) == [
        "model.onnx", "model.py", "network.py", "texts.py", "tokenizer.json",
    ]  # fmt: skip


def test_words_that_are_not_allowed_are_named(tmp_path):
    done = CliRunner().invoke(app, ["model", "export", "--output", str(tmp_path), "--layout", "tower"])
    assert "--layout: 'tower' is not allowed. It takes python, ensemble." in str(done.exception)


async def test_the_ensemble_in_fp16_agrees_with_the_model_in_process(tmp_path):
    options = Options(layout=Layout.ENSEMBLE, precision=Precision.FP16, device=Device.CUDA)
    names, agreement = await repository.export(tmp_path, options)
    assert names == [minilm.NAME, f"{minilm.NAME}-tokenizer", f"{minilm.NAME}-network"]
    assert 0 < agreement.most_difference < 1e-3 and agreement.least_cosine > 0.9999
    weights = tmp_path / names[2] / "1" / "model.onnx"
    assert 40e6 < weights.stat().st_size < 50e6  # half of FP32's 90 MB


def test_other_vectors_are_not_put_into_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "agreement", _raise)
    with pytest.raises(ModelMisconfigured, match="other vectors"):
        asyncio.run(repository.export(tmp_path / "models", Options()))
    assert list((tmp_path / "models").iterdir()) == []


def _raise(*_):
    raise ModelMisconfigured("other vectors", reason="bad_export")


def test_agreement_notices_a_difference_and_nan():
    one = np.eye(3, dtype=np.float32)
    assert checks.agreement(one, one, Precision.FP32).most_difference == 0
    for wrong in (one[::-1], np.full_like(one, np.nan), one[:2], one + np.float32(2e-6)):
        with pytest.raises(ModelMisconfigured):
            checks.agreement(wrong, one, Precision.FP32)


def test_numpy_2_is_refused_where_it_corrupts():
    for version, release, allowed in (("1.26.4", "", False), ("2.1.0", "25.01", False), ("2.1.0", "", True)):
        served.refuse_broken_numpy(version, release, allowed)
    for release in ("", "24.10"):
        with pytest.raises(RuntimeError, match="numpy<2"):
            served.refuse_broken_numpy("2.1.0", release, False)


def test_padding_rounds_up_and_packs_keep_every_row():
    ids, mask = served.pad([[1, 2, 3], [4]], multiple=8)
    assert ids.shape == (2, 8) and mask.sum(axis=1).tolist() == [3, 1]
    plan = served.pack([5, 1, 9, 9, 2, 300], tokens=20, alike=0.5)
    assert sorted(index for batch in plan for index in batch) == list(range(6))
    assert plan[0] == [5] and plan[1] == [2, 3]
