"""Captions by the paths of pictures: read whole, or refused by their key; never by an order."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from kdcli.data import captions
from kdcli.data.captions import captions_for, read_captions, unmatched
from kdcli.errors import InputError


def written(file: Path, content: Any) -> str:
    """A file of bytes, of a text, or of anything else as JSON; its path."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        file.write_bytes(text.encode())
    return str(file)


def test_captions_go_by_path(tmp_path: Path) -> None:
    said = {"train/b/2.jpg": "a fox", "train/a b/ü.png": " ein Bär ", "x.jpg": "a photo", "..a/b..": "{}"}
    found = read_captions(written(tmp_path / "captions.json", said))
    assert list(found.items()) == [
        *(
            ("train/b/2.jpg", "a fox"),
            ("train/a b/ü.png", "ein Bär"),
            ("x.jpg", "a photo"),
            ("..a/b..", "{}"),
        ),
    ]
    names = ["train/a b/ü.png", "train/b/1.jpg", "train/b/2.jpg", "b/2.jpg"]
    assert captions_for(found, names, "captions.json") == ["ein Bär", None, "a fox", None]
    counts = unmatched(found, names)
    assert (counts.pictures, counts.captions) == (2, 2)
    assert captions_for(found, [], "captions.json") == []


def test_how_it_was_saved_changes_nothing(tmp_path: Path) -> None:
    text = '\ufeff{\r\n"a/1.jpg":\r\n "x"}\r\n\r\n'
    assert read_captions(written(tmp_path / "captions.txt", text)) == {"a/1.jpg": "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"/a/1.jpg": "x"}, "picture '/a/1.jpg': a path begins in the folder of the data and stays in it."),
        ({"C:/a/1.jpg": "x"}, "picture 'C:/a/1.jpg': a path begins in the folder of the data"),
        ({"C:\\1.jpg": "x"}, "picture 'C:\\\\1.jpg': a path begins in the folder of the data"),
        ({"\\\\host\\1.jpg": "x"}, "a path begins in the folder of the data"),
        ({"https://a/1.jpg": "x"}, "picture 'https://a/1.jpg': a path begins in the folder of the data"),
        ({"../1.jpg": "x"}, "picture '../1.jpg': a path begins in the folder of the data and stays in it."),
        ({"a/../b/1.jpg": "x"}, "picture 'a/../b/1.jpg': a path begins in the folder"),
        ({"a\\1.jpg": "x"}, "picture 'a\\\\1.jpg': write the path as 'a/1.jpg'."),
        ({"./a/1.jpg": "x"}, "picture './a/1.jpg': write the path as 'a/1.jpg'."),
        ({"a//1.jpg": "x"}, "picture 'a//1.jpg': write the path as 'a/1.jpg'."),
        ({"": "x"}, "captions.json: the path of a picture is empty."),
        (
            {"a\n.jpg": "x"},
            "captions.json: the path of a picture 'a\\n.jpg' has line breaks, control characters",
        ),
        ({"a.jpg": ""}, "captions.json, picture 'a.jpg': the caption is empty."),
        ({"a.jpg": " \n"}, "captions.json, picture 'a.jpg': the caption is empty."),
        ({"a.jpg": None}, "captions.json, picture 'a.jpg': the caption is null, where a text is wanted."),
        ({"a.jpg": ["x", "y"]}, 'picture \'a.jpg\': the caption is ["x", "y"], where a text is wanted.'),
        ({"a.jpg": "x\x9by"}, "picture 'a.jpg': the caption 'x\\x9by' has line breaks, control characters"),
        (
            '{"a.jpg": "x", "b.jpg": "y", "a.jpg": "x"}',
            "captions.json: the key 'a.jpg' stands twice in one object",
        ),
        ({}, "captions.json holds no caption."),
        ("[]", "captions.json is not a JSON object."),
        ("", "captions.json is not valid JSON"),
        (b'{"a.jpg":\n"\xe9"}', "captions.json line 2 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_refused_by_its_key(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_captions(written(tmp_path / "captions.json", content))
    assert message in str(error.value).replace(f"{tmp_path}{os.sep}", "")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"cannot read .*none\.json: No such file"):
        read_captions(str(tmp_path / "none.json"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match="it is no regular file"):
        read_captions(str(tmp_path / "pipe.json"))
    file = written(tmp_path / "captions.json", {"a.jpg": "x"})
    monkeypatch.setattr(captions, "_LARGEST", 10)
    with pytest.raises(InputError, match=r"cannot read .*captions\.json: it has more than 10 bytes"):
        read_captions(file)


def test_captions_of_other_pictures_are_refused() -> None:
    with pytest.raises(InputError) as error:
        captions_for({"fox/1.jpg": "a fox", "fox/2.jpg": "x"}, ["train/fox/1.jpg"] * 1200, "captions.json")
    assert str(error.value) == (
        "captions.json: these are captions of other pictures, of none of the 1,200 that the data have, first "
        "'train/fox/1.jpg'. The first path in it is 'fox/1.jpg'. Paths begin in the folder of the data, and "
        "name the folder of a split too."
    )


def test_many_captions(tmp_path: Path) -> None:
    names = [f"train/class_{i % 100}/{i}.jpg" for i in range(50_000)]
    file = written(tmp_path / "captions.json", {name: f"picture of {name}" for name in names})
    begin = time.perf_counter()
    found = read_captions(file)
    assert captions_for(found, names[::-1], file) == [f"picture of {name}" for name in names[::-1]]
    assert unmatched(found, names) == (0, 0)
    assert time.perf_counter() - begin < 3  # 0.2 on an idle core
