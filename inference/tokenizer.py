"""A model's own ``tokenizer.json`` (Hugging Face tokenizers), set right for batches.

As published such a file often cuts texts shorter than the model reads and pads every one to a fixed length, which makes
short texts many times slower. Both are replaced on loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import ModelMisconfigured

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 512
"""Where a text is cut when neither the settings nor the file say: what most encoders were trained with."""

CUTS = (8, 256)
"""Characters read of a text, per token that the model takes. The first cut fills a model with any prose (which has four
or five characters to a token); the second is tried where it did not: long runs of blanks or of one word. Past it a text
is not read, so that a 20 MB value costs no more than a page."""

PADDING_NAMES = ("[PAD]", "<pad>", "<|endoftext|>")


class ModelTokenizer:
    """Text to token ids, cut at ``max_tokens`` and never padded. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int | None = None) -> None:
        """Wrap a loaded tokenizer, undoing the padding and truncation that its file asks for.

        Args:
            tokenizer: as loaded.
            max_tokens: where to cut, special tokens included; by default where the file does, else at 512.
        """
        padding: dict[str, Any] | None = tokenizer.padding
        truncation: dict[str, Any] | None = tokenizer.truncation
        named = (tokenizer.token_to_id(name) for name in PADDING_NAMES)
        self.padding: int = padding["pad_id"] if padding else next((i for i in named if i is not None), 0)
        self.max_tokens: int = max_tokens or (truncation["max_length"] if truncation else MAX_TOKENS)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path, max_tokens: int | None = None) -> ModelTokenizer:
        """Load a ``tokenizer.json``, or the one in a folder.

        Raises:
            ModelMisconfigured: there is no such file, or it is not a tokenizer.
        """
        from tokenizers import Tokenizer

        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            tokenizer = Tokenizer.from_buffer(file.read_bytes())
        except OSError as error:
            raise ModelMisconfigured(
                f"The tokenizer {file} cannot be read ({error.strerror}): set WALVEC_TOKENIZER to the model's "
                "tokenizer.json.",
                reason="tokenizer",
            ) from error
        except Exception as error:  # the library raises nothing narrower
            raise ModelMisconfigured(
                f"{file} is not a tokenizer: set WALVEC_TOKENIZER to the model's tokenizer.json.", reason="tokenizer"
            ) from error
        return cls(tokenizer, max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, with the model's special tokens, between 1 and ``max_tokens`` of them."""
        short, long = (self.max_tokens * cut for cut in CUTS)
        stripped = [text.lstrip() for text in texts]
        ids = self._ids([text[:short] for text in stripped])
        unfilled = [i for i, text in enumerate(stripped) if len(text) > short and len(ids[i]) < self.max_tokens]
        if unfilled:
            for i, again in zip(unfilled, self._ids([stripped[i][:long] for i in unfilled]), strict=True):
                ids[i] = again
        return ids

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # The tokenizer takes only what UTF-8 can spell; a lone surrogate becomes a question mark.
        spelled = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        # A tokenizer without special tokens gives none for an empty text; no model takes a row of nothing.
        return [encoding.ids or [self.padding] for encoding in self._tokenizer.encode_batch_fast(spelled)]
