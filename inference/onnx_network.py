"""A network of an ONNX model in this process: token ids in, vectors out, in whichever thread asks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from inference import minilm
from inference.contract import ModelContract, read_contract
from inference.embedder import Vectors
from inference.errors import ModelFailed, ModelMisconfigured
from inference.onnx_models import OnnxModel
from inference.pooling import Ids, pad, pool, unit
from inference.tokenizer import ModelTokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

PROBE = ("walvec", "A second text, rather longer than the first, that must not move the first one's vector at all.")
MOST_DRIFT = 1e-3
"""How far company may move a vector of length 1. Rounding alone moves it by less than a hundredth of that."""


class Network:
    """The loaded network and its tokenizer; every method may run in any thread."""

    def __init__(
        self, session: InferenceSession, tokens: ModelTokenizer, contract: ModelContract, normalize: bool
    ) -> None:
        self._session = session
        self._contract = contract
        self._normalize = normalize
        self.tokens = tokens
        self.alone = False
        """Whether texts must be computed one by one, for they move each other's vectors."""

    @classmethod
    def load(cls, model: OnnxModel) -> Network:
        """Read and load both files; those that come along are proved first.

        Raises:
            ModelMisconfigured: a file or a package is missing or not the one expected, or the network does not embed.
        """
        try:
            import onnxruntime
            import tokenizers  # noqa: F401 - asked for here so that both absences read the same
        except ImportError as error:
            raise ModelMisconfigured(
                f"The embedded runtime needs the package {error.name}: pip install onnxruntime tokenizers, "
                "or name a Triton server in WALVEC_TRITON_URL.",
                reason="package_missing",
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # plans are kept per input shape, and shapes here never end
        options.log_severity_level = 3
        if model.weights is None:
            weights: bytes | str = minilm.read_proved(minilm.weights_file(), minilm.WEIGHTS_SHA256)
            tokens = minilm.load_tokenizer(max_tokens=model.max_tokens)
        else:
            weights = str(model.weights)  # as a path: large models keep their weights in a file beside it
            tokens = ModelTokenizer.load(model.tokenizer, model.max_tokens)
        try:
            session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise ModelMisconfigured(
                f"{model.weights} cannot be loaded by ONNX Runtime ({type(error).__name__}): export it again, as ONNX.",
                reason="model_files",
            ) from error
        contract = read_contract(_metadata(model.name, session), None, pooling=model.pooling)
        if contract.tokens is not None and contract.tokens < tokens.max_tokens:
            tokens = ModelTokenizer.load(model.tokenizer, contract.tokens)
        if contract.inputs[0].role != "ids":
            what = f"Model {model.name} takes no token ids: serve it on Triton."
            raise ModelMisconfigured(what, reason="bad_contract")
        normalize = model.normalize if model.normalize is not None else contract.pooling != "none"
        return cls(session, tokens, contract, normalize)

    def prove(self) -> int:
        """Embed two texts, alone and together; return the width of the vectors.

        Raises:
            ModelMisconfigured: the network does not take them.
        """
        short, long = self.tokens.encode(PROBE)
        try:
            alone, together = self.forward([short]), self.forward([short, long])
        except ModelFailed as error:
            raise ModelMisconfigured(f"The model does not take a short text: {error}", reason="bad_contract") from error
        drift = float(np.linalg.norm(unit(alone.copy())[0] - unit(together.copy())[0]))
        if drift > MOST_DRIFT:
            self.alone = True
            log.warning("a text's vector depends on its batch (by %.4f): texts are embedded one by one", drift)
        return int(alone.shape[1])

    def forward(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """Return the vectors of one batch of token ids, shape ``(rows, dimension)``.

        Raises:
            ModelFailed: the network broke or gave what is not a vector.
        """
        ids, mask = pad(rows, self.tokens.padding, self._contract.tokens)
        try:
            given = np.asarray(self.states(self._feed(ids, mask)))
        except Exception as error:  # ONNX Runtime's exceptions share no base but this
            raise ModelFailed(
                f"The embedded model failed on a batch of {len(rows)} texts ({type(error).__name__}).",
                reason="internal",
            ) from error
        if self._contract.pooling == "none":
            vectors: Vectors = np.array(given, np.float32).reshape(len(rows), -1)
        else:
            vectors = pool(given, mask, self._contract.pooling)
        if not np.isfinite(vectors).all():
            raise ModelFailed("The embedded model gave a vector that is not finite.", reason="bad_reply")
        return unit(vectors) if self._normalize else vectors

    def feed(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the network's inputs for one batch of token ids."""
        return self._feed(*pad(rows, self.tokens.padding, self._contract.tokens))

    def _feed(self, ids: Ids, mask: Ids) -> dict[str, Any]:
        by_role = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
        return {
            tensor.name: by_role[tensor.role].astype(np.int32 if tensor.datatype == "INT32" else np.int64, copy=False)
            for tensor in self._contract.inputs
        }

    def states(self, feed: dict[str, Any]) -> Any:
        """Return the network's output, token states of shape ``(rows, tokens, dimension)`` or vectors.

        Raises as ONNX Runtime does.
        """
        (given,) = self._session.run([self._contract.output], feed)
        return given


_DATATYPES = {
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
}


def _metadata(name: str, session: InferenceSession) -> Any:
    """Describe a network as a server would, for :func:`inference.contract.read_contract`."""

    def tensors(found: Sequence[Any]) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                name=tensor.name,
                datatype=_DATATYPES.get(tensor.type, tensor.type),
                shape=[size if isinstance(size, int) else -1 for size in tensor.shape],
            )
            for tensor in found
        ]

    return SimpleNamespace(name=name, inputs=tensors(session.get_inputs()), outputs=tensors(session.get_outputs()))
