"""Banks of texts: candidates are chosen again and again, and what is no candidate stays beside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toolbox import bank, commit_model
from torch.nn import functional as F

from kdcli.errors import InputError
from kdcli.models.banks import mean_of_texts, read_bank
from kdcli.models.build import Wanted, build
from kdcli.tasks.matching import bring_into_order

CLASSES = ("ant", "bee", "cat", "dog")


def test_what_is_no_candidate_stays_beside() -> None:
    whole = bank(CLASSES)
    some = whole.taking(["dog", "ant"], "it")
    assert some.classes == ("dog", "ant")
    assert torch.equal(some.embeddings, whole.embeddings[[3, 0]])
    assert some.beside is not None
    assert some.beside.classes == ("bee", "cat")
    again = some.taking(["cat", "ant"], "it")
    assert torch.equal(again.embeddings, whole.embeddings[[2, 0]])
    assert again.texts == (("a photo of cat",), ("a photo of ant",))
    assert set(again.whole().classes) == set(CLASSES)
    assert some.taking(CLASSES, "it").beside is None
    with pytest.raises(InputError, match=r"it has no text for 'do'\. Did you mean 'dog'\?"):
        some.taking(["do"], "it")


def test_a_student_is_asked_about_classes_that_it_has_not_learned(tmp_path: Path) -> None:
    """Its artifact answers for what it was trained on, and knows the texts of all others."""
    some = bank(CLASSES).taking(["cat", "ant"], "it")
    wanted = Wanted(["cat", "ant"], task="zeroshot", bank=some)
    made = build("test_resnet", wanted, pretrained=False, size=32)
    student = build(str(commit_model(made, tmp_path / "student"))).eval()
    assert student.classes == ["cat", "ant"]
    described = json.loads((tmp_path / "student" / "texts.json").read_text())
    assert list(described["texts"]) == ["cat", "ant"]
    assert list(described["beside"]) == ["bee", "dog"]
    x = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding = F.normalize(student.call([x], ["embedding"])["embedding"], dim=1)
        for names in (["dog", "bee"], list(CLASSES)):
            bring_into_order(student, names, "names", "student")
            rows = bank(CLASSES).embeddings[[CLASSES.index(name) for name in names]]
            torch.testing.assert_close(student(x), 20 * embedding @ rows.t())


def test_a_bank_whose_rows_beside_are_others_is_refused() -> None:
    some = bank(CLASSES).taking(["cat"], "it")
    assert some.beside is not None
    described = some.to_json()
    found = read_bank(described, some.embeddings, "here", beside=some.beside.embeddings)
    assert found.beside is not None
    assert found.beside.classes == ("ant", "bee", "dog")
    for rows in (None, some.beside.embeddings[:2]):
        with pytest.raises(InputError, match="here describes other classes beside than the bank has rows of"):
            read_bank(described, some.embeddings, "here", beside=rows)


def test_several_texts_of_a_class_have_a_mean() -> None:
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    found = mean_of_texts(rows, [2, 1])
    first = (rows[0] / rows[0].norm() + rows[1] / rows[1].norm()) / 2
    torch.testing.assert_close(found[0], first / first.norm())
    torch.testing.assert_close(found[1], rows[2] / rows[2].norm())
