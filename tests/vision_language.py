"""Tiny vision-language models, written as the hub has them: both towers in one file, tokenizer, processor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

_TEXT = """
a photo of the bag coat boot dress sandal shirt pullover sneaker trouser top t cat dog bird red blue
small large round with and sleeves made for walking on summer days it has long short bad art . ,
"""
WORDS = _TEXT.split()
SIDE, WIDTH, SHARED, LENGTH = 32, 24, 16, 12


def write_tokenizer(folder: Path, *, words: Sequence[str] = WORDS, length: int = LENGTH) -> None:
    """Words with their numbers; a text begins with <s> and ends with </s>, which fills it up too."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *dict.fromkeys(words)])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )
    fast.save_pretrained(folder)


def _processor(folder: Path, mean: Sequence[float], std: Sequence[float], *, cropped: bool) -> None:
    described = {
        "image_processor_type": "CLIPImageProcessor" if cropped else "SiglipImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE} if cropped else {"height": SIDE, "width": SIDE},
        "do_center_crop": cropped,
        **({"crop_size": {"height": SIDE, "width": SIDE}} if cropped else {}),
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(described))


def tiny_clip(folder: Path, *, seed: int = 0, words: Sequence[str] = WORDS) -> Path:
    """A CLIP of a few thousand weights."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(dict.fromkeys(words)) + 3,
            "max_position_embeddings": LENGTH,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=SHARED,
    )
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = CLIPModel(config)
    with torch.no_grad():  # an untrained tower embeds all texts nearly alike
        for tensor in model.parameters():
            if tensor.ndim > 1:
                tensor.mul_(8)
    model.eval().save_pretrained(folder)
    write_tokenizer(folder, words=words)
    _processor(folder, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), cropped=True)
    return folder


def tiny_siglip(folder: Path, *, seed: int = 0) -> Path:
    """A SigLIP of a few thousand weights."""
    from transformers import SiglipConfig, SiglipModel

    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = SiglipConfig(
        text_config={
            **small,
            "vocab_size": len(dict.fromkeys(WORDS)) + 3,
            "max_position_embeddings": LENGTH,
            "projection_size": WIDTH,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
    )
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    SiglipModel(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    _processor(folder, (0.5,) * 3, (0.5,) * 3, cropped=False)
    return folder
