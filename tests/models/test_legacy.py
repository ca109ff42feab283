"""Other people's checkpoints: what is read, what is refused, and that nothing is ever run."""

import pickle
import random
from pathlib import Path

import pytest
import torch
from toolbox import Payload

from kdcli.errors import InputError
from kdcli.models.legacy import first_line, read_weights


def test_a_payload_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": Payload(mark)}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"w": Payload(mark)}, protocol=2))
    torch.save(
        {"w": torch.ones(2), "x": Payload(mark)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    for name in ("zip.pth", "raw.pth", "old.pth"):
        with pytest.raises(InputError, match=r"holds pickled code or objects.*never runs those.*safetensors"):
            read_weights(tmp_path / name)
        assert not mark.exists()
    pickle.loads((tmp_path / "raw.pth").read_bytes())
    assert mark.exists()  # the payload would have worked


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(InputError, match="holds pickled code or objects"):
        read_weights(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds no state_dict \\(it is a list\\)"),
        ({"epoch": 3}, "holds no state_dict \\(it is a dict\\)"),
        ({"state_dict": {"lr": 0.1}}, "holds no state_dict"),
    ],
)
def test_no_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        read_weights(tmp_path / "w.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--weights .*nothing\.pth does not exist"):
        read_weights(tmp_path / "nothing.pth")


def test_prefixes_are_stripped_only_where_all_names_have_them(tmp_path: Path) -> None:
    w = torch.ones(1)
    for i, (given, expected) in enumerate(
        [
            ({"module.a": w, "module.b": w}, ["a", "b"]),
            ({"_orig_mod.module.a": w}, ["a"]),
            ({"module.module.a": w}, ["a"]),
            ({"module.a": w, "b": w}, ["module.a", "b"]),
        ]
    ):
        torch.save({"model": given, "step": 5}, tmp_path / f"{i}.pth")
        assert list(read_weights(tmp_path / f"{i}.pth").tensors) == expected


def test_damaged_files_are_input_errors(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(40.0), "b": torch.ones(3, 3)}, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    draw = random.Random(0)
    cut = [whole[:n] for n in (0, 1, 2, 10, 100, len(whole) // 2, len(whole) - 1)]
    flipped = []
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        flipped.append(bytes(data))
    refused = 0
    for data in [*cut, *flipped, b"hello", b"{}", bytes(range(256))]:
        (tmp_path / "bad.pth").write_bytes(data)
        try:
            found = read_weights(tmp_path / "bad.pth").tensors
        except InputError:
            refused += 1
        else:
            assert found  # a flip in the numbers: read, as no hash is known for a foreign file
    assert refused >= len(cut) + 3
    (tmp_path / "bad.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="is not a readable safetensors file"):
        read_weights(tmp_path / "bad.safetensors")


def test_first_line_of_silent_errors_is_their_kind() -> None:
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("\none\ntwo")) == "one"
