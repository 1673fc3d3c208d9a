import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from inference.errors import ModelMisconfigured
from inference.minilm import TOKENIZER_FILE
from inference.tokenizer import ModelTokenizer


def words(padding: str = "<pad>") -> Tokenizer:
    vocabulary = {"zip": 0, padding: 7, "[UNK]": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_the_file_decides_where_to_cut_unless_the_settings_do():
    text = ["word " * 600]
    assert len(ModelTokenizer.load(TOKENIZER_FILE).encode(text)[0]) == 128
    assert len(ModelTokenizer.load(TOKENIZER_FILE, 300).encode(text)[0]) == 300
    assert ModelTokenizer(words()).max_tokens == 512


def test_a_folder_will_do():
    assert ModelTokenizer.load(TOKENIZER_FILE.parent).padding == 0


@pytest.mark.parametrize(("name", "padding"), [("<pad>", 7), ("[PAD]", 7), ("other", 0)])
def test_padding_is_the_models_own(name, padding):
    assert ModelTokenizer(words(name)).padding == padding


def test_padding_of_the_file_wins_and_is_switched_off():
    tokenizer = words()
    tokenizer.enable_padding(pad_id=3, length=64)
    mine = ModelTokenizer(tokenizer)
    assert mine.padding == 3 and mine.encode(["zip zip"]) == [[0, 0]]


def test_an_empty_text_is_one_padding_where_there_are_no_special_tokens():
    assert ModelTokenizer(words()).encode(["", "zip"]) == [[7], [0]]


def test_a_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ModelMisconfigured, match=r"nothing\.json cannot be read.*WALVEC_TOKENIZER"):
        ModelTokenizer.load(tmp_path / "nothing.json")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"hidden_size": 384}))
    with pytest.raises(ModelMisconfigured, match="is not a tokenizer: set WALVEC_TOKENIZER"):
        ModelTokenizer.load(file)
