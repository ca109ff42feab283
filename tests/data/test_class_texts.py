"""What is said about classes: files read whole or refused by line or key, texts as the authors make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kdcli.data import class_texts
from kdcli.data.class_texts import (
    PROMPTS,
    TEMPLATES,
    ClassText,
    bare,
    check_template,
    prompts_of,
    read_class_texts,
    texts_of,
)
from kdcli.errors import InputError, UsageError

PHOTO = TEMPLATES["photo"]
LABELS = "n02119789 1 kit_fox\nn02100735 2 English_setter\nn03255030 3 dumbbell\n"
SENTENCES = "The kit fox is slender.\nThe setter has long fur.\nA dumbbell is a bar.\n"


def written(file: Path, content: Any) -> str:
    """A file of bytes, of a text, or of anything else as JSON; its path."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        file.write_bytes(text.encode())
    return str(file)


def refused(tmp_path: Path, content: Any, name: str = "classes.json") -> str:
    """Why a file is refused, without its folder."""
    with pytest.raises(InputError) as error:
        read_class_texts(written(tmp_path / name, content))
    return str(error.value).replace(f"{tmp_path}{os.sep}", "")


# -- JSON ----------------------------------------------------------------------------------------------------


def test_json_says_all_or_a_name_or_nothing(tmp_path: Path) -> None:
    file = written(
        tmp_path / "classes.json",
        {
            "n02": {"name": "kit fox", "description": " It is slender. ", "source": "gpt-3.5"},
            "n01": {"name": "crane", "description": ["A bird.", "It has long legs."]},
            "café_au_lait": "café au lait",
            "fire_truck": {},
            "日本": {"description": "島 {}"},
        },
    )
    found = read_class_texts(file)
    assert list(found) == ["n02", "n01", "café_au_lait", "fire_truck", "日本"]
    assert list(found.values()) == [
        ClassText("n02", "kit fox", ("It is slender.",), "gpt-3.5"),
        ClassText("n01", "crane", ("A bird.", "It has long legs.")),
        ClassText("café_au_lait", "café au lait"),
        ClassText("fire_truck", "fire truck"),
        ClassText("日本", "日本", ("島 {}",)),
    ]


def test_json_is_known_by_its_beginning_too(tmp_path: Path) -> None:
    text = '\ufeff \r\n{"a": "x",\r\n "b": "y"}\r\n\r\n'
    for name in ("classes.txt", "classes", "classes.JSON"):
        found = read_class_texts(written(tmp_path / name, text))
        assert {entry.name: entry.words for entry in found.values()} == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"a": "x", "b": "y", "a": "z"}',
            "classes.json: the key 'a' stands twice in one object. Remove one.",
        ),
        ('{"a": {"name": "x", "name": "y"}}', "classes.json: the key 'name' stands twice in one object."),
        (
            {"a": {"nmae": "x"}},
            "class 'a': there is no key 'nmae'; there are name, description, source. Did you",
        ),
        (
            {"a": {"descriptions": ["x"]}},
            "no key 'descriptions'; there are name, description, source. Did you ",
        ),
        ({"a": {"": "x"}}, "class 'a': there is no key ''; there are name, description, source."),
        ({"a": {"name": ""}}, "classes.json, class 'a': 'name' is empty. Write one, or leave it out."),
        ({"a": " "}, "classes.json, class 'a': 'name' is empty."),
        ({"": "x"}, "classes.json: a class is empty."),
        ({"_": {}}, "classes.json, class '_': '_' is no name that can be read. Give the class one."),
        ({"a": {"name": 7}}, "classes.json, class 'a': 'name' is 7, where a text is wanted."),
        ({"a": {"name": None}}, "classes.json, class 'a': 'name' is null, where a text is wanted."),
        ({"a": {"source": ["x"]}}, "class 'a': 'source' is [\"x\"], where a text is wanted."),
        (
            {"a": 7},
            "class 'a': 7 where a natural name or an object with name, description, source is wanted.",
        ),
        ({"a": ["x"]}, "class 'a': [\"x\"] where a natural name or an object"),
        ({"a": {"description": ""}}, "classes.json, class 'a': 'description' is empty."),
        ({"a": {"description": None}}, "class 'a': 'description' is null, where a text is wanted."),
        ({"a": {"description": []}}, "class 'a': 'description' is an empty list."),
        ({"a": {"description": ["x", "\t"]}}, "classes.json, class 'a': description 2 is empty."),
        ({"a": {"description": ["x", {}]}}, "classes.json, class 'a': description 2 is {}, where a text is"),
        (
            {"a": {"description": "x\ny"}},
            "class 'a': 'description' 'x\\ny' has line breaks, control characters",
        ),
        (
            {"a": "x\x1b[2J"},
            "class 'a': 'name' 'x\\x1b[2J' has line breaks, control characters or others that",
        ),
        ({"a\x00": "x"}, "classes.json: a class 'a\\x00' has line breaks, control characters"),
        (
            '{"a": "\\ud800"}',
            "class 'a': 'name' '\\ud800' has line breaks, control characters or others that are",
        ),
        ({}, "classes.json names no class."),
        ("[]", "classes.json is not a JSON object."),
        ("", "classes.json is not valid JSON: Expecting value"),
        ('{"a": "x"', "classes.json is not valid JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "classes.json is not valid JSON: "),
        (
            b'{"a": "x",\n"b": "\xff"}',
            "classes.json line 2 is not UTF-8: invalid start byte. Save it as UTF-8.",
        ),
        ('{"a": "x"}'.encode("utf-16"), "classes.json line 1 is not UTF-8"),
    ],
)
def test_json_is_refused_by_its_key(tmp_path: Path, content: Any, message: str) -> None:
    assert message in refused(tmp_path, content)


def test_what_is_long_is_not_shown_whole(tmp_path: Path) -> None:
    long = "x" * 100_000
    for content in (
        {long: ""},
        {"a": {long: "x"}},
        {"a": [long]},
        {"a": {"name": [long]}},
        {"a": f"{long}\n"},
    ):
        assert len(refused(tmp_path, content)) < 1000


# -- lists ---------------------------------------------------------------------------------------------------


def test_the_official_pair_is_joined_line_by_line(tmp_path: Path) -> None:
    labels = written(tmp_path / "label2text.txt", LABELS)
    sentences = written(tmp_path / "chatgpt.txt", SENTENCES)
    found = read_class_texts(labels, sentences)
    assert list(found.values()) == [
        ClassText("n02119789", "kit fox", ("The kit fox is slender.",), "chatgpt.txt"),
        ClassText("n02100735", "English setter", ("The setter has long fur.",), "chatgpt.txt"),
        ClassText("n03255030", "dumbbell", ("A dumbbell is a bar.",), "chatgpt.txt"),
    ]
    alone = read_class_texts(labels)
    assert [entry.words for entry in alone.values()] == ["kit fox", "English setter", "dumbbell"]
    assert not any(entry.descriptions or entry.source for entry in alone.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"\ufeff{text}",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: f"{text}\n \t\r\n\n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("\n", "\n\n"),
        lambda text: "".join(f"  {line} \n" for line in text.splitlines()),
    ],
    ids=["BOM", "CRLF", "blank lines behind", "no last line break", "blank lines between", "spaces"],
)
def test_lists_are_the_same_however_they_were_saved(tmp_path: Path, change: Any) -> None:
    plain = read_class_texts(
        written(tmp_path / "label2text.txt", LABELS), written(tmp_path / "chatgpt.txt", SENTENCES)
    )
    (tmp_path / "new").mkdir()
    files = [
        (tmp_path / "new" / n, change(t)) for n, t in (("labels.txt", LABELS), ("chatgpt.txt", SENTENCES))
    ]
    assert read_class_texts(*(written(*file) for file in files)) == plain


def test_plain_names(tmp_path: Path) -> None:
    text = "\ufeffcafé_au_lait\r\nAudi 100 Sedan\r\nhard-leaved_pocket orchid\r\n日本\r\n\r\n"
    found = read_class_texts(written(tmp_path / "names.txt", text))
    assert [(key, entry.name, entry.words) for key, entry in found.items()] == [
        ("café_au_lait", "café_au_lait", "café au lait"),
        ("Audi 100 Sedan", "Audi 100 Sedan", "Audi 100 Sedan"),
        ("hard-leaved_pocket orchid", "hard-leaved_pocket orchid", "hard-leaved pocket orchid"),
        ("日本", "日本", "日本"),
    ]
    described = read_class_texts(
        written(tmp_path / "names.txt", "a\nb\n"), written(tmp_path / "said.txt", "A.\nB.\n")
    )
    assert described["b"] == ClassText("b", "b", ("B.",), "said.txt")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1 7 a_b\nn2 12 c\nn3 40 d\n", ["n1", "n2", "n3"]),  # a part of a longer list
        ("n1 0 a_b\nn2 1 c\n", ["n1", "n2"]),
        ("Audi 2012 Sedan\nBMW 2012 Coupe\n", ["Audi 2012 Sedan", "BMW 2012 Coupe"]),
        ("Formula 1 car\nbus\ntruck\n", ["Formula 1 car", "bus", "truck"]),
    ],
)
def test_which_list_it_is(tmp_path: Path, text: str, names: list[str]) -> None:
    assert list(read_class_texts(written(tmp_path / "list.txt", text))) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            f"{LABELS}n4 4 a b\n",
            "a.txt line 4: 'n4 4 a b' where a folder, a number and a name with unders",
        ),
        (
            "a.txt",
            f"{LABELS}\nn4 dog\n",
            "a.txt line 5: 'n4 dog' where a folder, a number and a name with underscor",
        ),
        ("a.txt", f"{LABELS}n4 x dog\n", "a.txt line 4: 'n4 x dog' where a folder"),
        ("label2text.txt", "dog\n", "label2text.txt line 1: 'dog' where a folder, a number"),
        ("a.txt", f"{LABELS}n4 4 __\n", "a.txt line 4: '__' is no name that can be read."),
        (
            "a.txt",
            f"{LABELS}n03255030 4 x\n",
            "a.txt line 4: the class 'n03255030' stands in a.txt line 3 too.",
        ),
        ("a.txt", "a\nb\r\n\na\n", "a.txt line 4: the class 'a' stands in a.txt line 1 too. Remove one."),
        (
            "a.txt",
            "a\nb\tc\n",
            "a.txt line 2: the class 'b\\tc' has line breaks, control characters or others that",
        ),
        ("a.txt", "a\nb\x1b[1m\n", "a.txt line 2: the class 'b\\x1b[1m' has line breaks, control"),
        ("a.txt", "a\rb\rc\r", "a.txt line 1: the class 'a\\rb\\rc' has line breaks"),
        ("a.txt", "a\n_\n", "a.txt line 2: '_' is no name that can be read. Give the class one."),
        ("a.txt", "\n \n", "a.txt names no class."),
        ("a.txt", b"", "a.txt names no class."),
        (
            "a.txt",
            b"a\nb\ncaf\xe9\n",
            "a.txt line 3 is not UTF-8: invalid continuation byte. Save it as UTF-8.",
        ),
        (
            "a.csv",
            "class,name\na,b\n",
            "a.csv: texts about classes are JSON (.json), or a list with a class on ",
        ),
    ],
)
def test_a_list_is_refused_by_its_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    assert message in refused(tmp_path, content, name)


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (
            SENTENCES + "One more.\n",
            "chatgpt.txt has 4 sentences, and .*label2text.txt has 3 classes: a line of",
        ),
        ("A.\n\nB.\n", "chatgpt.txt has 2 sentences, and .*label2text.txt has 3 classes"),
        (b"", "chatgpt.txt has 0 sentences"),
        (
            "A.\nB.\x07\nC.\n",
            r"chatgpt.txt line 2: the sentence 'B.\\x07' has line breaks, control characters",
        ),
        (b"A.\nB.\n\x80\n", "chatgpt.txt line 3 is not UTF-8"),
    ],
)
def test_sentences_that_are_not_of_the_classes_are_refused(
    tmp_path: Path, sentences: Any, message: str
) -> None:
    labels = written(tmp_path / "label2text.txt", LABELS)
    with pytest.raises(InputError, match=message):
        read_class_texts(labels, written(tmp_path / "chatgpt.txt", sentences))


def test_sentences_beside_json_are_refused(tmp_path: Path) -> None:
    file, sentences = written(tmp_path / "a.json", {"a": "x"}), written(tmp_path / "chatgpt.txt", "A.\n")
    with pytest.raises(
        InputError, match=r"a\.json is JSON, which holds descriptions itself; those of .*chatgpt"
    ):
        read_class_texts(file, sentences)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = written(tmp_path / "label2text.txt", LABELS)
    for arguments in ((str(tmp_path / "none.txt"),), (labels, str(tmp_path / "none.txt"))):
        with pytest.raises(InputError, match=r"cannot read .*none\.txt: No such file or directory\."):
            read_class_texts(*arguments)
    with pytest.raises(InputError, match="it is no regular file"):
        read_class_texts(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="it is no regular file"):
        read_class_texts(labels, str(tmp_path / "pipe.txt"))
    with pytest.raises(InputError, match="cannot read a\0b: embedded null byte"):
        read_class_texts("a\0b")
    monkeypatch.setattr(class_texts.read_text, "__defaults__", (len(LABELS) - 1,))
    with pytest.raises(
        InputError, match=rf"cannot read .*label2text\.txt: it has more than {len(LABELS) - 1} b"
    ):
        read_class_texts(labels)


def test_ten_thousand_classes(tmp_path: Path) -> None:
    names = [f"class_{i}" for i in range(10_000)]
    whole = {name: {"name": f"thing {name}", "description": f"The {name}." * 10} for name in names}
    labels = "".join(f"{name} {i} thing_{name}\n" for i, name in enumerate(names, 1))
    sentences = "".join(f"The {name}.\n" for name in names)
    files = [written(tmp_path / "a.json", whole), written(tmp_path / "labels.txt", labels)]
    beside = written(tmp_path / "chatgpt.txt", sentences)
    begin = time.perf_counter()
    for entries in (read_class_texts(files[0]), read_class_texts(files[1], beside), bare(names)):
        assert list(entries) == names
        texts = texts_of(entries, names[::-1], TEMPLATES["clip7"], described="source" in entries)
        assert len(texts) == 10_000
    assert time.perf_counter() - begin < 3  # 0.3 on an idle core


# -- texts ---------------------------------------------------------------------------------------------------

ENTRIES = {
    "n1": ClassText("n1", "kit fox", ("It is slender.", "It has {} ears.")),
    "n2": ClassText("n2", "crane", ("A bird.",)),
    "n3": ClassText("n3", "crane", ("A machine.",)),
    "n4": ClassText("n4", "set {0}"),
}


def test_texts_are_those_of_the_authors(tmp_path: Path) -> None:
    """As the code reads: ``"a photo of " + name + " . " + description``, for classes in another order."""
    labels, sentences = LABELS.split("\n")[:3], SENTENCES.split("\n")[:3]
    entries = read_class_texts(
        written(tmp_path / "label2text.txt", LABELS), written(tmp_path / "chatgpt.txt", SENTENCES)
    )
    names = [line.split(" ")[2].replace("_", " ") for line in labels]
    classes = [line.split(" ")[0] for line in labels]
    order = [2, 0]
    wanted = [classes[i] for i in order]
    assert texts_of(entries, wanted, PHOTO, described=False) == [["a photo of " + names[i]] for i in order]
    assert texts_of(entries, wanted, PHOTO, described=True) == [
        ["a photo of " + names[i] + " . " + sentences[i]] for i in order
    ]


def test_each_template_with_each_description() -> None:
    found = texts_of(ENTRIES, ["n1"], ["a {}.", "{}, drawn"], described=True)
    assert found == [
        [
            "a kit fox. . It is slender.",
            "a kit fox. . It has {} ears.",
            "kit fox, drawn . It is slender.",
            "kit fox, drawn . It has {} ears.",
        ]
    ]
    assert texts_of(ENTRIES, ["n4"], ["a {}."], described=False) == [["a set {0}."]]
    assert texts_of(ENTRIES, [], PHOTO, described=True) == []


def test_no_class_falls_back_to_its_name() -> None:
    entries = {**ENTRIES, **bare(["a", "b", "c"])}
    with pytest.raises(
        InputError, match=r"there is no description of 'n4'\. Describe each class, or leave all"
    ):
        texts_of(entries, ["n1", "n4"], PHOTO, described=True)
    with pytest.raises(
        InputError, match=r"no description of 'a', 'n4', 'b' and 1 more\. .*texts\.described=false"
    ):
        texts_of(entries, ["a", "n1", "n4", "b", "c"], PHOTO, described=True)


def test_classes_without_an_entry_are_named() -> None:
    entries = bare(["kit_fox", "crane"])
    with pytest.raises(
        InputError, match=r"nothing is said about 'kit_fix'\. Did you mean 'kit_fox'\? Each class"
    ):
        texts_of(entries, ["crane", "kit_fix"], PHOTO, described=False)
    with pytest.raises(InputError, match=r"nothing is said about '1', '2', '3' and 1,001 more\. Each class"):
        texts_of(entries, [str(i) for i in range(1, 1005)], PHOTO, described=False)


def test_two_classes_of_which_the_same_is_said_are_refused_where_both_are_asked_for() -> None:
    message = (
        "the same is said about the classes 'n2' and 'n3', 'a photo of crane': nothing could tell their "
        "pictures apart. Describe them differently, or leave one out."
    )
    with pytest.raises(InputError) as error:
        texts_of(ENTRIES, ["n2", "n1", "n3"], PHOTO, described=False)
    assert str(error.value) == message
    assert len(texts_of(ENTRIES, ["n2", "n1", "n3"], PHOTO, described=True)) == 3
    assert (
        len(texts_of(ENTRIES, ["n2", "n1"], PHOTO, described=False)) == 2
    )  # the other one is another split's
    same = {name: ClassText(name, "x", said) for name, said in (("a", ("1", "2")), ("b", ("2", "1")))}
    with pytest.raises(InputError, match="the same is said about the classes 'a' and 'b'"):
        texts_of(same, ["a", "b"], PHOTO, described=True)
    with pytest.raises(InputError, match="the same is said about the classes 'a_b' and 'a b'"):
        texts_of(bare(["a_b", "a b"]), ["a_b", "a b"], PHOTO, described=False)


def test_bare_names_lose_their_underscores_only() -> None:
    names = ["001.Black_footed_Albatross", "T-shirt", "n02119789", "Größe_XL", "a__b"]
    assert [entry.words for entry in bare(names).values()] == [
        *("001.Black footed Albatross", "T-shirt", "n02119789", "Größe XL", "a  b"),
    ]
    assert bare(["a"]) == {"a": ClassText("a", "a", (), "")}
    for name in ("", "__", " "):
        with pytest.raises(InputError, match=f"the class '{name}': '{name}' is no name that can be read"):
            bare(["a", name])


# -- templates and prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "a photo", "{} and {}", "{0}", "{name}", "{", "}", "{}}", "{{}}", "{} {x}", "}{", "{ }"]
)
def test_a_template_has_one_place(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"stands in it once, for the name of a class, and no other braces do"
    ):
        check_template(text)
    with pytest.raises(UsageError, match="the template"):
        texts_of(ENTRIES, ["n1"], [text], described=False)


def test_a_misspelt_name_of_templates_is_told() -> None:
    with pytest.raises(
        UsageError, match=r"By name there are: photo, photo-a, clip7\. Did you mean 'photo-a'\?"
    ):
        check_template("photo_a")
    with pytest.raises(UsageError, match="there is no template"):
        texts_of(ENTRIES, ["n1"], [], described=False)


def test_templates_are_those_of_the_papers() -> None:
    for template in (*(one for own in TEMPLATES.values() for one in own), "{}", "α {} 日本"):
        check_template(template)
    filled = {name: [template.format("dog") for template in own] for name, own in TEMPLATES.items()}
    assert filled == {
        "photo": ["a photo of dog"],
        "photo-a": ["a photo of a dog."],
        "clip7": [
            *("itap of a dog.", "a bad photo of the dog.", "a origami dog.", "a photo of the large dog."),
            *("a dog in a video game.", "art of the dog.", "a photo of the small dog."),
        ],
    }


def test_prompts_are_those_of_the_paper() -> None:
    assert list(PROMPTS) == ["main", "succinct", "detailed", "distinct"]
    assert all(prompt.count("{cls}") == 1 for prompt in PROMPTS.values())
    assert prompts_of(["kit fox", "{cls}"]) == [
        "Use a single sentence to describe the appearance and shape of kit fox. Only describe the shape and "
        "appearance.",
        "Use a single sentence to describe the appearance and shape of {cls}. Only describe the shape and "
        "appearance.",
    ]
    assert prompts_of(["a"], "succinct")[0] == (
        "Use a single sentence to broadly describe the appearance and shape of a. Don't give too much "
        "details. Only describe the shape and appearance."
    )
    assert prompts_of(["a"], "detailed")[0] == (
        "Use a single sentence and short, simple, descriptive phrases to describe the detailed appearance "
        "and detailed shape of a."
    )
    assert prompts_of(["a"], "distinct")[0] == (
        "Use a single sentence to describe the unique, distinctive appearance and shape of a. Only describe "
        "the unique, distinctive shape and appearance."
    )
    with pytest.raises(UsageError, match=r"no prompt 'sucinct'; there are main, .*Did you mean 'succinct'\?"):
        prompts_of(["a"], "sucinct")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, kdcli.data.class_texts, kdcli.data.captions; "
        "sys.exit(str({'torch', 'numpy', 'pydantic', 'datasets', 'rich'} & set(sys.modules) or ''))"
    )
    found = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert found.stderr.strip() == ""
