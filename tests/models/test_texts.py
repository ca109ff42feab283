"""Text towers: embeddings of plain transformers, padding and truncation included; what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from vision_language import LENGTH, WORDS, tiny_clip, tiny_siglip, write_tokenizer

from kdcli.errors import InputError
from kdcli.models import families
from kdcli.models.texts import open_text_tower

TEXTS = [
    "a photo of a bag",
    "a photo of the dress with long sleeves made for walking on summer days",
    "boot",
    "a photo of a t shirt .",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("texts") / "clip")


def sentence_encoder(folder: Path, *, mode: str = "mean_tokens") -> Path:
    """A BERT of a few thousand weights with sentence-transformers' files."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(dict.fromkeys(WORDS)) + 3,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    BertModel(config).eval().save_pretrained(folder)
    write_tokenizer(folder, length=64)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 24, f"pooling_mode_{mode}": True, "pooling_mode_x": False})
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10}))
    return folder


def tower_of(clip: Path, side: Literal["picture", "text"]):  # type: ignore[no-untyped-def]
    config = json.loads((clip / "config.json").read_text())
    return families.loaded("clip", side, str(clip), families.configured(config, side, "toy"), "toy")


def plain(folder: Path, text: str) -> Tensor:
    """What transformers makes of one text, filled up to the tower's whole length."""
    from transformers import AutoModel, AutoTokenizer

    given = AutoTokenizer.from_pretrained(folder)(
        [text], truncation=True, max_length=LENGTH, padding="max_length", return_tensors="pt"
    )
    keys = ("input_ids",) if "siglip" in str(folder) else ("input_ids", "attention_mask")
    with torch.inference_mode():
        found = AutoModel.from_pretrained(folder).eval().get_text_features(**{k: given[k] for k in keys})
    return (found if isinstance(found, Tensor) else found.pooler_output)[0]


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_embeddings_are_those_of_plain_transformers(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Whatever stands beside a text in a batch, and however long that is."""
    folder = make(tmp_path / make.__name__)
    found = open_text_tower(str(folder)).encode(TEXTS)
    assert found.truncated == (1,)
    for text, row in zip(TEXTS, found.embeddings):
        torch.testing.assert_close(row, plain(folder, text), atol=1e-5, rtol=1e-5)
    assert (found.embeddings[0] - found.embeddings[2]).norm() > 1e-3


def test_a_sentence_encoder_takes_the_mean_of_its_tokens(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = sentence_encoder(tmp_path / "bert")
    tower = open_text_tower(f"local-dir:{folder}")
    assert (tower.length, tower.pooling, tower.family) == (10, "mean", None)
    found = tower.encode(TEXTS)
    assert found.truncated == (1,)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, row in zip(TEXTS, found.embeddings):
        with torch.inference_mode():
            tokens = tokenizer([text], truncation=True, max_length=10, return_tensors="pt")
            hidden = model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[0]
        torch.testing.assert_close(row, sum(hidden) / len(hidden), atol=1e-5, rtol=1e-5)
    first = open_text_tower(str(sentence_encoder(tmp_path / "cls", mode="cls_token")))
    assert first.pooling == "cls"
    with pytest.raises(
        InputError, match="asks for pooling_mode_max_tokens; known are pooling_mode_mean_tokens"
    ):
        open_text_tower(str(sentence_encoder(tmp_path / "max", mode="max_tokens")))


def test_a_tower_is_known_by_its_weights_and_words(clip: Path, tmp_path: Path) -> None:
    """Not by the files: the text tower alone, saved by itself, is the same one."""
    own = open_text_tower(str(clip)).hash
    alone = tmp_path / "alone"
    tower_of(clip, "text").save_pretrained(alone)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(clip / name, alone / name)
    assert open_text_tower(str(alone)).hash == own
    assert open_text_tower(str(tiny_clip(tmp_path / "other", seed=1))).hash != own
    write_tokenizer(alone, words=[WORDS[1], WORDS[0], *WORDS[2:]])
    assert open_text_tower(str(alone)).hash != own


def test_a_tokenizer_of_another_network_is_refused(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "more words"
    shutil.copytree(clip, folder)
    write_tokenizer(folder, words=[*WORDS, "word", "more"])
    with pytest.raises(
        InputError, match=r"does not fit its text tower: it numbers words up to \d+, and the tower"
    ):
        open_text_tower(str(folder))
    ended = tmp_path / "other end"
    shutil.copytree(clip, ended)
    config = json.loads((ended / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (ended / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="a text ends with the word 1, and the tower looks for 5"):
        open_text_tower(str(ended))


def test_what_has_no_text_tower_is_refused(clip: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    tower_of(clip, "picture").save_pretrained(pictures)
    with pytest.raises(
        InputError, match=r"has no text tower that is known here: its type is 'clip_vision_model'"
    ):
        open_text_tower(str(pictures))
    wordless = tmp_path / "wordless"
    shutil.copytree(clip, wordless, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(InputError, match="has no tokenizer that can be read"):
        open_text_tower(str(wordless))
    with pytest.raises(InputError, match="is no folder here, and cannot be had from the hub"):
        open_text_tower(str(tmp_path / "nothing"))


def test_no_text_is_refused(clip: Path) -> None:
    with pytest.raises(InputError, match="there is no text to embed"):
        open_text_tower(str(clip)).encode([])
