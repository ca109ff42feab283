"""Learned contexts: as real words they are a template; their gradient, their cuts, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_texts import sentence_encoder
from torch import Tensor
from vision_language import LENGTH, WIDTH, WORDS, tiny_clip, tiny_siglip, write_tokenizer

from kdcli.errors import InputError, UsageError
from kdcli.models import prompts
from kdcli.models.banks import TextBank, mean_of_texts
from kdcli.models.build import Wanted, build
from kdcli.models.prompts import PromptedTexts, encode, learn_contexts, prompts_of, settled, without_templates
from kdcli.models.texts import TextTower, open_text_tower

NAMES = ("bag", "red coat", "t shirt")


def tiny_metaclip(folder: Path) -> Path:
    """A MetaCLIP 2 of a few thousand weights."""
    from transformers import MetaClip2Config, MetaClip2Model

    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    words = {"vocab_size": len(dict.fromkeys(WORDS)) + 3, "max_position_embeddings": LENGTH}
    config = MetaClip2Config(
        text_config={**small, **words, **ends},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    MetaClip2Model(config).eval().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def encoder_of(kind: str) -> Callable[[Path], Path]:
    """A maker of an encoder that counts positions by the numbers of its tokens, or has a table apart."""

    def make(folder: Path) -> Path:
        from transformers import AutoConfig, AutoModel

        own = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
        if kind == "distilbert":
            own = {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 32}
        config: Any = AutoConfig.for_model(
            kind,
            vocab_size=len(dict.fromkeys(WORDS)) + 3,
            max_position_embeddings=40,
            pad_token_id=1,
            **own,
        )
        torch.manual_seed(0)
        AutoModel.from_config(config).eval().save_pretrained(folder)
        write_tokenizer(folder, length=30)
        return folder

    return make


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_clip,
    "siglip": tiny_siglip,
    "metaclip": tiny_metaclip,
    "bert": sentence_encoder,
    "first token": lambda folder: sentence_encoder(folder, mode="cls_token"),
    "roberta": encoder_of("roberta"),
    "mpnet": encoder_of("mpnet"),
    "distilbert": encoder_of("distilbert"),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("prompts") / "clip")


def words_of(tower: TextTower, text: str) -> Tensor:
    """[M, W] what the tower's table has for the words of a text, without its ends."""
    ids = tower.tokenizer([text], add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    return tower.words.weight[ids].detach().clone()


def bank_of(tower: TextTower, names: tuple[str, ...] = NAMES, template: str = "a photo of {}") -> TextBank:
    texts = tuple((template.format(name),) for name in names)
    rows = mean_of_texts(tower.encode([text for (text,) in texts]).embeddings, [1] * len(names))
    return TextBank(names, rows, texts, tower.name, tower.hash, 20.0, (template,))


def without_first_token(folder: Path) -> Path:
    """The same model, whose texts begin with their first word as SigLIP's do."""
    file = folder / "tokenizer.json"
    raw = json.loads(file.read_text())
    raw["post_processor"]["single"] = raw["post_processor"]["single"][1:]
    file.write_text(json.dumps(raw))
    return folder


# -- the bank ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*MAKERS, "siglip without a first token"])
def test_contexts_that_are_words_make_the_bank_of_those_words(kind: str, tmp_path: Path) -> None:
    """The naive derivation: the prompt written out, read by the tower as any text."""
    if kind in MAKERS:
        folder = MAKERS[kind](tmp_path / "tower")
    else:
        folder = without_first_token(tiny_siglip(tmp_path / "siglip"))
    tower = open_text_tower(str(folder))
    with torch.no_grad():  # untrained, they embed all texts nearly alike
        for tensor in tower.body.parameters():
            if tensor.ndim > 1 and kind != "clip":
                tensor.mul_(4)
    contexts = words_of(tower, "a photo of a")
    assert contexts.shape == (4, 24)
    made = PromptedTexts(bank_of(tower), tower, contexts)
    assert made.first == (0 if "without" in kind else 1)
    wanted = mean_of_texts(tower.encode([f"a photo of a {name}." for name in NAMES]).embeddings, [1, 1, 1])
    torch.testing.assert_close(made.weight.detach(), wanted, atol=1e-5, rtol=0)
    other = PromptedTexts(bank_of(tower), tower, words_of(tower, "large cat with boot"))
    assert (other.weight - wanted).abs().max() > 0.01  # not whatever stands there
    found = encode(tower, NAMES, contexts)
    torch.testing.assert_close(mean_of_texts(found.embeddings, [1, 1, 1]), wanted, atol=1e-5, rtol=0)
    embedding = torch.randn(5, wanted.shape[1], generator=torch.Generator().manual_seed(0))
    logits = 20.0 * torch.nn.functional.normalize(embedding, dim=1) @ wanted.t()
    torch.testing.assert_close(made(embedding).detach(), logits, atol=1e-4, rtol=0)


def test_several_texts_of_a_class_have_their_mean(clip: Path) -> None:
    tower = open_text_tower(str(clip))
    texts = (("bag . it has long sleeves", "bag . red"), ("boot . large", "boot . small."))
    bank = TextBank(("a", "b"), torch.eye(2, 16), texts, str(clip), tower.hash, 1.0)
    contexts = words_of(tower, "bad art")
    rows = tower.encode(
        [f"bad art {text}" for text in ("bag . it has long sleeves.", "bag . red.", "boot . large.")]
        + ["bad art boot . small."]
    ).embeddings
    wanted = mean_of_texts(rows, [2, 2])
    torch.testing.assert_close(PromptedTexts(bank, tower, contexts).weight.detach(), wanted)


@pytest.mark.parametrize(
    ("templates", "texts", "said"),
    [
        ((), ("a photo of a bag",), ("a photo of a bag",)),
        (("a photo of a {}",), ("a photo of a bag",), ("bag",)),
        (("a photo of a {}.",), ("a photo of a bag. . it is. . red",), ("bag . it is. . red",)),
        (("a {} , art", "{}"), ("a bag , art", "bag"), ("bag",)),
        (("a {}", "{}!"), ("a b . x", "a b . y", "b! . x", "b! . y"), ("b . x", "b . y")),
    ],
)
def test_the_words_of_templates_are_taken_out(
    templates: tuple[str, ...], texts: tuple[str, ...], said: tuple[str, ...]
) -> None:
    bank = TextBank(("one",), torch.ones(1, 2), (texts,), "", "", 1.0, templates)
    assert without_templates(bank) == (said,)


def test_texts_of_other_templates_are_refused() -> None:
    bank = TextBank(("one",), torch.ones(1, 2), (("a drawing of a bag",),), "", "", 1.0, ("a photo of {}",))
    with pytest.raises(
        InputError, match=r"'a drawing of a bag' of the class 'one' is not made of .*'a photo"
    ):
        without_templates(bank)


# -- learning ------------------------------------------------------------------------------------------------


def loss_of(bank: Tensor) -> Tensor:
    weights = torch.randn(bank.shape, generator=torch.Generator().manual_seed(3))
    return (bank * weights).sum()


@pytest.mark.parametrize("kind", ["clip", "siglip", "bert"])
def test_the_gradient_reaches_the_contexts_and_nothing_else(kind: str, tmp_path: Path) -> None:
    """Against differences of the loss in float64, by direction."""
    tower = open_text_tower(str(MAKERS[kind](tmp_path / "tower")))
    before = {name: tensor.clone() for name, tensor in tower.body.state_dict().items()}
    made = PromptedTexts(bank_of(tower), tower, words_of(tower, "small boot"))
    loss_of(made.weight).backward()
    assert [name for name, _ in made.named_parameters()] == ["contexts"]
    assert set(made.state_dict()) == {"contexts", "scale"}
    gradient = made.contexts.grad
    assert gradient is not None
    assert all(part.grad is None for part in tower.body.parameters())
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(4)).double()
    tower.body.double()
    step, prompt = 1e-4, prompts_of(tower, NAMES, 2)

    def at(share: float) -> Tensor:
        contexts = made.contexts.detach().double() + share * direction
        rows = prompts.prompted(tower, prompt.tokens, prompt.first, contexts)
        return loss_of(torch.nn.functional.normalize(rows, dim=1))

    slope = (at(step) - at(-step)) / (2 * step)
    assert slope.abs() > 1e-3
    torch.testing.assert_close((gradient.double() * direction).sum(), slope, rtol=1e-3, atol=1e-6)
    tower.body.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.body.state_dict().items())


def test_many_texts_are_embedded_in_parts_with_the_same_gradient(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = open_text_tower(str(clip))
    whole = PromptedTexts(bank_of(tower), tower, words_of(tower, "small boot"))
    loss_of(whole.weight).backward()
    monkeypatch.setattr(prompts, "_TEXTS", 2)
    parts = PromptedTexts(bank_of(tower), tower, words_of(tower, "small boot"))
    loss_of(parts.weight).backward()
    torch.testing.assert_close(parts.weight, whole.weight)
    torch.testing.assert_close(parts.contexts.grad, whole.contexts.grad)
    found = encode(tower, NAMES, words_of(tower, "small boot"))
    torch.testing.assert_close(mean_of_texts(found.embeddings, [1] * 3), whole.weight.detach())


def test_the_bank_is_made_once_for_a_backward_and_anew_for_other_contexts(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, calls = open_text_tower(str(clip)), []
    made = PromptedTexts(bank_of(tower), tower, words_of(tower, "small boot"))
    embed = TextTower.embed
    monkeypatch.setattr(TextTower, "embed", lambda *given: (calls.append(1), embed(*given))[1])
    first = made.weight
    assert made.weight is first
    assert len(calls) == 1
    loss_of(first).backward()
    loss_of(made.weight).backward()  # the graph of the first is gone
    assert len(calls) == 2
    with torch.no_grad():
        plain = made.weight
        assert torch.equal(plain, first)
        assert not plain.requires_grad
        assert made.weight is plain
        made.contexts.data.add_(0.1)  # as optimisers that know of no versions do
        assert not torch.equal(made.weight, plain)
    assert made.weight.requires_grad


def test_copies_share_the_tower_and_nothing_else(clip: Path) -> None:
    tower = open_text_tower(str(clip))
    made = PromptedTexts(bank_of(tower), tower, words_of(tower, "small boot"))
    rows = made.weight
    other = copy.deepcopy(made)
    assert other.tower is tower
    assert torch.equal(other.weight, rows)
    with torch.no_grad():
        other.contexts.zero_()
    assert torch.equal(made.weight, rows)


# -- cuts and refusals ---------------------------------------------------------------------------------------


def test_texts_are_cut_to_what_contexts_leave(clip: Path) -> None:
    """Of twelve tokens, two are ends and six contexts: four words are left."""
    tower = open_text_tower(str(clip))
    texts = ["large round bag", "large round red bag with long sleeves", "bag"]
    found = prompts_of(tower, texts, 6)
    assert found.truncated == (1,)
    ids = found.tokens["input_ids"]
    assert ids.shape == (3, LENGTH)
    assert ids[1, 7:].tolist() == [
        *tower.tokenizer("large round red bag", add_special_tokens=False)["input_ids"],
        1,
    ]
    assert found.tokens["attention_mask"].sum(dim=1).tolist() == [12, 12, 10]
    contexts = words_of(tower, "a photo of the red dress")
    rows = encode(tower, texts, contexts).embeddings
    wanted = tower.encode(["a photo of the red dress large round red bag"]).embeddings[0]
    torch.testing.assert_close(rows[1], wanted, atol=1e-5, rtol=0)


def test_classes_that_are_cut_to_the_same_are_refused(clip: Path) -> None:
    tower = open_text_tower(str(clip))
    bank = bank_of(tower, ("large round red", "large round blue"), "{}")
    with pytest.raises(InputError, match="texts of 'large round red' and 'large round blue' are the same"):
        PromptedTexts(bank, tower, torch.zeros(8, 24))


def network_with(bank: TextBank) -> Any:
    wanted = Wanted(list(bank.classes), task="zeroshot", bank=bank)
    return build("test_resnet", wanted, pretrained=False, size=32)


def test_a_network_answers_by_what_it_learns(clip: Path) -> None:
    tower = open_text_tower(str(clip))
    network = network_with(bank_of(tower))
    torch.manual_seed(0)
    learn_contexts(network, 7)
    assert network.head.linear.contexts.std().item() == pytest.approx(0.02, rel=0.2)
    assert network.notes == ()
    assert network.tensor("classifier").shape == (3, 16)
    x = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    network.eval()
    found = network.call([x], ["embedding", "logits"])
    unit = torch.nn.functional.normalize(found["embedding"], dim=1)
    torch.testing.assert_close(found["logits"], 20.0 * unit @ network.tensor("classifier").t())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network.head.linear.contexts.mul_(-3)
    kept = settled(network, state)
    assert kept.bank is not None
    assert kept.bank.contexts is not None
    assert torch.equal(kept.bank.contexts, state["head.linear.contexts"])
    assert kept.bank.texts == (("bag",), ("red coat",), ("t shirt",))
    assert kept.bank.templates == ()
    torch.testing.assert_close(kept.call([x], ["logits"])["logits"], found["logits"])
    assert torch.equal(network.bank.embeddings, bank_of(tower).embeddings)  # whose copy it is stays


def test_texts_that_are_cut_are_told_of(clip: Path) -> None:
    tower = open_text_tower(str(clip))
    network = network_with(bank_of(tower, ("bag", "red coat with long sleeves for summer")))
    learn_contexts(network, 5)
    assert network.notes[-1] == (
        f"1 of 2 text is longer than the 12 tokens that {clip} reads, 5 of them contexts, and cut there"
    )


def test_what_cannot_learn_contexts_is_refused(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    tower = open_text_tower(str(folder))
    bank = bank_of(tower)
    with pytest.raises(UsageError, match=r"10 contexts: .* reads 12 tokens, which leaves room for 1 to 9"):
        learn_contexts(network_with(bank), 10)
    with pytest.raises(InputError, match="compares pictures with no texts"):
        learn_contexts(build("test_resnet", pretrained=False, size=32), 2)
    with pytest.raises(InputError, match=r"\[2, 7\] do not fit the words of .* have 24 numbers"):
        encode(tower, NAMES, torch.zeros(2, 7))
    shutil.rmtree(folder)
    with pytest.raises(
        InputError, match=r"no folder here.*Put it back there, or name it: --set texts\.tower=FOLDER"
    ):
        learn_contexts(network_with(bank), 2)
    tiny_clip(folder, seed=1)
    with pytest.raises(InputError, match=r"is another text tower now.* or leave method\.contexts out"):
        learn_contexts(network_with(bank), 2)
