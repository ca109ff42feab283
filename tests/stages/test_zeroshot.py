"""Zero-shot classification by a vision-language model: banks of texts by kdcli probe, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toolbox import QUIET, facts, flip
from vision_language import LENGTH, SHARED, WIDTH, WORDS, tiny_clip, tiny_siglip, write_tokenizer

from kdcli.artifacts.manifest import file_hash
from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.models.texts import open_text_tower
from kdcli.stages import probe

Run = Callable[..., Any]

CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress"]
SAID = {
    "T-shirt/top": {"name": "shirt", "description": "short sleeves"},
    "Trouser": {"name": "trouser", "description": "blue"},
    "Pullover": {"name": "pullover", "description": ["long sleeves", "red"]},
    "Dress": {"name": "dress", "description": "long"},
}


def written(file: Path, said: Any) -> str:
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return str(file)


def described(artifact: Path) -> dict[str, Any]:
    return json.loads((artifact / "texts.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zeroshot")
    tiny_clip(folder / "clip")
    tiny_clip(folder / "other", seed=9)
    tiny_siglip(folder / "siglip")
    written(folder / "said.json", SAID)
    written(folder / "label2text.txt", "n01 1 red_bag\nn02 2 small_boot\nn03 3 dress\n")
    written(folder / "chatgpt.txt", "long sleeves\nround\nblue\n")
    return folder


@pytest.fixture
def probed(home: Path, tmp_path: Path) -> Run:
    def run(out: str = "p", dry: bool = False, **more: Any) -> Any:
        options = {"teacher": f"local-dir:{home / 'clip'}", "data.task": "zeroshot", **more}
        options |= {"out": str(tmp_path / out), "cache": str(home / "cache")}
        given = {key: value for key, value in options.items() if value is not None}
        plan = probe.plan(resolve(probe.Config, options=given), QUIET, unless_complete=True)
        return plan if dry or isinstance(plan, probe.Result) else probe.run(plan, QUIET).path

    return run


@pytest.fixture(scope="module")
def teacher(home: Path, pictures: Path) -> Path:
    """The tiny CLIP with what is said of the four classes."""
    options = {"teacher": f"local-dir:{home / 'clip'}", "data.task": "zeroshot", "data.source": str(pictures)}
    options |= {"texts.file": str(home / "said.json"), "out": str(home / "teacher")}
    return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path


@pytest.fixture
def copied(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher, to be damaged."""
    return shutil.copytree(teacher, tmp_path / "copied")


# -- probe ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "width"), [("clip", SHARED), ("siglip", WIDTH)])
def test_names_of_data_make_a_bank(probed: Run, home: Path, pictures: Path, name: str, width: int) -> None:
    folder = f"local-dir:{home / name}"
    made = probed(teacher=folder, **{"data.source": str(pictures)})
    found, tower = facts(made), open_text_tower(folder)
    assert (found["task"], found["classes"]) == ("zeroshot", CLASSES)
    raw = load_file(home / name / "model.safetensors").get("logit_scale", torch.zeros(()))
    assert found["texts"] == {
        **{"tower": folder, "hash": tower.hash, "width": width, "scale": pytest.approx(raw.exp().item())},
        **{"templates": ["a photo of {}"], "truncated": 0},
    }
    assert described(made)["texts"] == {one: [f"a photo of {one}"] for one in CLASSES}
    naive = torch.nn.functional.normalize(tower.encode([f"a photo of {one}" for one in CLASSES]).embeddings)
    torch.testing.assert_close(build(str(made)).tensor("classifier"), naive)


def test_texts_stand_with_and_without_data(probed: Run, home: Path, pictures: Path) -> None:
    said = {
        "texts.file": written(
            home / "more.json", {"Bag": "bag", **SAID | {"Bag": {"name": "bag", "description": "red"}}}
        )
    }
    alone, beside = probed("alone", **said), probed("beside", **said, **{"data.source": str(pictures)})
    assert facts(alone)["classes"] == ["Bag", *CLASSES]
    assert facts(alone)["data"] is None
    assert facts(beside)["classes"] == CLASSES  # the order of the data, and no others
    assert described(beside)["texts"]["Pullover"] == [
        "a photo of pullover . long sleeves",
        "a photo of pullover . red",
    ]
    mine, other = (build(str(path)).tensor("classifier") for path in (alone, beside))
    torch.testing.assert_close(mine[1:], other)


def test_the_authors_files_and_several_templates(probed: Run, home: Path, warnings: list[str]) -> None:
    names = {"texts.file": str(home / "label2text.txt")}
    assert described(probed("names", **names))["texts"]["n02"] == ["a photo of small boot"]
    assert warnings == []
    templates = ["photo-a", "{}", "art of the {} and the large red cat", "photo-a"]
    more = {"texts.descriptions": str(home / "chatgpt.txt"), "texts.templates": templates}
    made = probed("sentences", **names, **more)
    unique = ["a photo of a {}.", "{}", "art of the {} and the large red cat"]
    assert facts(made)["texts"]["templates"] == unique
    assert described(made)["texts"]["n01"] == [
        *("a photo of a red bag. . long sleeves", "red bag . long sleeves"),
        "art of the red bag and the large red cat . long sleeves",
    ]
    tower = open_text_tower(str(home / "clip"))
    flat = [text for own in described(made)["texts"].values() for text in own]
    long = [text for text in flat if len(tower.tokenizer(text)["input_ids"]) > LENGTH]
    assert 0 < len(long) < len(flat)
    assert facts(made)["texts"]["truncated"] == len(long)
    (told,) = warnings
    assert told.startswith(f"{len(long)} of {len(flat)} text")
    assert f"longer than the {LENGTH} tokens" in told
    assert repr(long[0]) in told
    plain = probed("plain", **{**names, **more, "texts.described": False, "texts.templates": ["photo"]})
    assert described(plain)["texts"]["n01"] == ["a photo of red bag"]


def test_other_texts_leave_the_picture_tower_as_it_is(probed: Run, teacher: Path, home: Path) -> None:
    said = {"texts.file": written(home / "new.json", {"Bag": "bag", "Sandal": "sandal"})}
    made = probed(teacher=str(teacher), **said, **{"texts.tower": str(home / "clip"), "texts.scale": 7.0})
    before, after = (load_file(path / "model.safetensors") for path in (teacher, made))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (facts(made)["classes"], facts(made)["texts"]["scale"]) == (["Bag", "Sandal"], 7.0)
    assert [one["hash"] for one in facts(made)["parents"]] == [facts(made)["identity"]["parents"]["teacher"]]


def test_the_same_command_again_and_other_words_in_the_file(probed: Run, home: Path) -> None:
    said = {"texts.file": written(home / "words.json", {"Bag": "bag", "Sandal": "sandal"})}
    first = probed(**said)
    before = file_hash(first / "kdcli.json")
    assert probed(**said).path == first
    assert file_hash(first / "kdcli.json") == before
    written(home / "words.json", {"Bag": "bag", "Sandal": "red sandal"})
    with pytest.raises(InputError, match=r"belongs to a run with other settings: data\.texts"):
        probed(**said)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"data.task": None, "head": "texts"},
            "--head texts: --task zeroshot has the head texts, and no other",
        ),
        ({"data.task": None}, "--texts: networks for other tasks compare pictures with no texts"),
        ({"head": "keep"}, "--head keep: --task zeroshot has the head texts"),
        ({"finetune": True}, "--finetune trains a fitted head further; leave out --head texts"),
        ({"statistics.record": True}, r"--statistics needs training pictures \(no --head texts\)"),
        ({"grid.lr": [0.1]}, r"grid\.lr is given, and --head texts fits no head"),
        ({"features": "pooled"}, "--features is given, and --head texts fits no head"),
        ({"views.count": "3"}, "--views is given, and --head texts fits no head"),
        ({"views.hflip": 1.0}, r"views\.hflip is given, and --head texts fits no head"),
        ({"protocol": "dinov2"}, "--protocol is given, and --head texts fits no head"),
        ({"optim.lr": 1.0}, r"optim\.lr is given, and only --finetune trains by it"),
        (
            {"data.labels_per_class": 2},
            "--labels-per-class is given, and --head texts reads names of classes",
        ),
        ({"data.split_seed": 4}, r"data\.split_seed is given, and --head texts reads names of classes"),
        ({"data.class_balance": "sampler"}, "--class-balance is given, and --head texts reads names"),
        ({"data.class_order": "same"}, r"data\.class_order is given, and texts go by the names"),
        (
            {"data.source": None, "data.label_column": "x"},
            r"data\.label_column is given, and there is no --data",
        ),
        ({"data.captions": "c.json"}, r"data\.captions is given, and only kdcli distill reads captions"),
        ({"image_size": 48}, "--image-size: .* takes pictures of its own size only"),
        ({"weights": "a.safetensors"}, "--weights: .* is a folder or repository with weights of its own"),
        ({"texts.scale": 0}, r"texts\.scale: input should be greater than 0"),
        ({"texts.templates": [""]}, r"the template '': \{\} stands in it once"),
        ({"texts.templates": []}, r"texts\.templates is empty"),
        ({"texts.file": None, "data.source": None}, "which classes\\? Give --texts FILE, or --data"),
        ({"texts.file": None, "texts.descriptions": "a.txt"}, r"texts\.descriptions are of the classes of a"),
    ],
)
def test_what_a_probe_does_not_heed(
    probed: Run, home: Path, pictures: Path, more: dict[str, Any], message: str
) -> None:
    usual = {"texts.file": str(home / "said.json"), "data.source": str(pictures)}
    with pytest.raises(UsageError, match=message):
        probed(dry=True, **{**usual, **more})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"a": {"name": "bag", "description": "red"}, "b": "boot"}, "there is no description of 'b'"),
        ('{"a": "bag", "a": "boot"}', "the key 'a' stands twice in one object"),
        ({"a": "bag", "b": "bag"}, "the same is said about the classes 'a' and 'b'"),
        ({"a": "zeppelin", "b": "quark"}, "the texts of 'a' and 'b' are the same to the text tower"),
        ({}, "names no class"),
        ("", "is not valid JSON"),
    ],
)
def test_texts_that_tell_nothing_apart(probed: Run, tmp_path: Path, said: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probed(dry=True, **{"texts.file": written(tmp_path / "said.json", said)})


def test_data_and_texts_of_other_classes(probed: Run, pictures: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "said.json", {"Trouser": "trouser", "Shoe": "boot"})
    with pytest.raises(InputError, match="nothing is said about 'T-shirt/top', 'Pullover', 'Dress'"):
        probed(dry=True, **{"texts.file": file, "data.source": str(pictures)})


def test_teachers_that_embed_no_pictures_or_no_texts(
    probed: Run, home: Path, teacher: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    said = {"texts.file": str(home / "said.json")}

    def refused(message: str, **more: Any) -> None:
        with pytest.raises(InputError, match=message):
            probed(dry=True, **{**said, **more})

    resnet = {"teacher": "test_resnet", "weights": str(weights["test_resnet"]), "image_size": 32}
    refused("test_resnet embeds pictures in no space that texts are in", **resnet)
    refused("/no/config.json is not readable", teacher="local-dir:/no")
    unfit = shutil.copytree(home / "clip", tmp_path / "unfit")
    write_tokenizer(unfit, words=[*WORDS, "extra"])
    refused("the tokenizer of .* does not fit its text tower", teacher=f"local-dir:{unfit}")
    for file in unfit.glob("tokenizer*"):
        file.unlink()
    refused("has no tokenizer that can be read", teacher=f"local-dir:{unfit}")
    refused("siglip is another text tower than the one whose space", **{"texts.tower": str(home / "siglip")})
    for tower in ("other", "siglip"):
        more = {"teacher": str(teacher), "texts.tower": str(home / tower)}
        refused("is another text tower than the one whose space", **more)


def test_a_picture_tower_alone_takes_a_text_tower(probed: Run, home: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPVisionModelWithProjection

    whole = CLIPModel.from_pretrained(home / "clip")
    config = whole.config.vision_config
    config.projection_dim = SHARED
    alone = CLIPVisionModelWithProjection(config)
    alone.vision_model.load_state_dict(whole.vision_model.state_dict())
    alone.visual_projection.load_state_dict(whole.visual_projection.state_dict())
    alone.save_pretrained(tmp_path / "alone")
    shutil.copy(home / "clip" / "preprocessor_config.json", tmp_path / "alone")
    more = {"teacher": f"local-dir:{tmp_path / 'alone'}", "texts.file": str(home / "said.json")}
    with pytest.raises(InputError, match=r"has no text tower that is known here.* --set texts\.tower=FOLDER"):
        probed(dry=True, **more)
    assert facts(probed(**more, **{"texts.tower": str(home / "clip")}))["classes"] == CLASSES


@pytest.mark.parametrize(
    ("file", "how", "message"),
    [
        ("texts.json", "cut", "texts.json is damaged"),
        ("texts.json", "gone", "texts.json is missing from its artifact"),
        ("head.safetensors", "flip", "head.safetensors is damaged"),
        ("head.safetensors", "gone", "head.safetensors is missing from its artifact"),
    ],
)
def test_a_damaged_bank_is_refused(
    probed: Run, copied: Path, pictures: Path, file: str, how: str, message: str
) -> None:
    {"cut": lambda f: f.write_text("{"), "gone": os.remove, "flip": flip}[how](copied / file)
    with pytest.raises(InputError, match=message):
        probed(dry=True, teacher=str(copied), **{"data.source": str(pictures)})


def test_a_bank_that_contradicts_its_rows_is_refused(copied: Path) -> None:
    manifest = facts(copied)

    def sealed(name: str) -> None:
        file = copied / name
        manifest["files"][name] = {"size": file.stat().st_size, "sha256": file_hash(file)}
        (copied / "kdcli.json").write_text(json.dumps(manifest))

    told = described(copied)
    told["texts"].pop("Dress")
    written(copied / "texts.json", told)
    sealed("texts.json")
    with pytest.raises(InputError, match="describes 3 classes, and the bank has 4 rows"):
        build(str(copied))
    written(copied / "texts.json", {**told, "texts": {one: ["x"] for one in CLASSES}})
    sealed("texts.json")
    tensors = load_file(copied / "head.safetensors")
    tensors["linear.weight"][0, 0] = float("nan")
    save_file(tensors, copied / "head.safetensors")
    sealed("head.safetensors")
    with pytest.raises(InputError, match="a bank whose numbers are none"):
        build(str(copied))
