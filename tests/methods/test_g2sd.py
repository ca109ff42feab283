"""The generic stage of G2SD: golden values of the authors' modules, and what must not be hit by mistake.

The numbers were printed by the reference modules (torch 2.13, one thread) on the nets built here by name.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toolbox import QUIET, method_options, rows
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.config import resolve
from kdcli.engine.assembly import assemble
from kdcli.engine.optim import build_optimizer
from kdcli.engine.turn import TurnModule
from kdcli.losses.masked import generic_distillation
from kdcli.methods import function
from kdcli.methods.g2sd import generic, larger_part, specific
from kdcli.methods.mae import masking
from kdcli.models.autoencoder import Decoder, Predictor
from kdcli.models.masked import positions, visible_of
from kdcli.models.timm import TimmModel
from kdcli.stages import distill
from kdcli.tasks.classification import Classification
from kdcli.tasks.representation import Representation

SIDE, PATCH = 32, 8
LOSS, NORM = 0.3099023, 11.4348154
OTHER_BLOCKS = {1: 0.2880975, 2: 0.2977557, 8: 0.3479355}
_OFFICIAL = {  # our names of a decoder, and theirs
    "embed": "decoder_embed",
    "blocks": "decoder_blocks",
    "norm": "decoder_norm",
    "pred": "decoder_pred",
    "mask_token": "mask_token",
}


def fill(name: str, tensor: Tensor) -> None:
    """Values that depend on a parameter's name alone."""
    k = zlib.crc32(name.encode()) % 1000
    values = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + k)
    values *= 1.8 / math.sqrt(tensor[0].numel()) if tensor.ndim > 1 else 0.1
    if "." in name and "norm" in name.split(".")[-2] and name.endswith("weight"):
        values += 1
    with torch.no_grad():
        tensor.copy_(values.float().view_as(tensor))


def encoder(width: int, heads: int) -> TimmModel:
    body = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=width, depth=3, num_heads=heads,
        num_classes=0,
    )  # fmt: skip
    for name, parameter in body.named_parameters():
        if name != "pos_embed":
            fill(name, parameter)
    with torch.no_grad():
        body.pos_embed.copy_(positions(width, (4, 4), 1))
    body.pos_embed.requires_grad_(False)
    spec = InputSpec((SIDE, SIDE))
    return TimmModel(body, spec, None, name=f"vit{width}", task="representation")


def filled(decoder: Decoder) -> Decoder:
    for name, parameter in decoder.named_parameters():
        first, _, rest = name.partition(".")
        fill(".".join(filter(None, (_OFFICIAL[first], rest))), parameter)
    return decoder


@pytest.fixture
def teacher() -> TimmModel:
    network = encoder(48, 4)
    network.decoder = filled(Decoder(48, 32, 8, 4, (4, 4), 3 * PATCH * PATCH))
    return network.requires_grad_(False).eval()


@pytest.fixture
def parties(teacher: TimmModel) -> dict[str, nn.Module]:
    predictor = Predictor((17, 16), (17, 32))
    for name, parameter in predictor.named_parameters():
        fill(f"decoderfeature_pred.{name}", parameter)
    decoder = filled(Decoder(24, 16, 4, 2, (4, 4)))
    return {"student": encoder(24, 2), "teacher": teacher, "decoder": decoder, "predictor": predictor}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    x = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(10))
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(11))
    return {"x": x, "visible": visible_of(noise, ratio=0.75)}


def loss_of(parties: dict[str, nn.Module], batch: dict[str, Tensor], block: int = 4) -> Tensor:
    method = generic(Representation(), masking(decoder=16), teacher_block=block)
    module = TurnModule(method.turns[0], parties).train()
    found: Tensor = module(dict(batch), torch.ones(2), 0.0)["loss"]
    return found


def test_the_reference_s_random_numbers_are_drawn() -> None:
    assert torch.randn(1, generator=torch.Generator().manual_seed(0)).item() == pytest.approx(1.5409961)
    assert torch.rand(1, generator=torch.Generator().manual_seed(0)).item() == pytest.approx(0.4962566)


def test_the_whole_stage_is_that_of_the_authors(
    parties: dict[str, nn.Module], batch: dict[str, Tensor]
) -> None:
    loss = loss_of(parties, batch)
    loss.backward()
    squares = sum(
        float(p.grad.double().square().sum())
        for name in ("student", "decoder", "predictor")
        for p in parties[name].parameters()
        if p.grad is not None
    )
    assert loss.item() == pytest.approx(LOSS, rel=1e-5)
    assert math.sqrt(squares) == pytest.approx(NORM, rel=1e-5)


def test_what_teacher_and_student_give_is_theirs(
    parties: dict[str, nn.Module], batch: dict[str, Tensor]
) -> None:
    teacher, student = parties["teacher"], parties["student"]
    assert isinstance(teacher, TimmModel)
    assert isinstance(student, TimmModel)
    hidden = teacher.call([batch["x"], batch["visible"]], ["decoder4"])["decoder4"]
    assert hidden.double().sum().item() == pytest.approx(512.2587280, rel=1e-5)
    assert hidden.double().norm().item() == pytest.approx(72.1977463, rel=1e-5)
    tokens = student.call([batch["x"], batch["visible"]], ["tokens"])["tokens"]
    predicted = parties["predictor"](parties["decoder"](tokens, batch["visible"])["out"])
    assert predicted.double().norm().item() == pytest.approx(13.4161158, rel=1e-5)


@pytest.mark.parametrize("block", OTHER_BLOCKS)
def test_another_block_of_the_teacher_is_told_apart(
    parties: dict[str, nn.Module], batch: dict[str, Tensor], block: int
) -> None:
    assert loss_of(parties, batch, block).item() == pytest.approx(OTHER_BLOCKS[block], rel=1e-5)


def test_the_seen_patches_are_those_of_the_smallest_noise() -> None:
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(11))
    assert visible_of(noise, ratio=0.75)[0].nonzero().flatten().tolist() == [0, 3, 7, 10]


def test_teacher_and_student_see_the_same_patches(parties: dict[str, nn.Module]) -> None:
    """With another mask for each the loss would differ; the derive is drawn once in a step."""
    method = generic(Representation(), masking(decoder=16))
    module, seen = TurnModule(method.turns[0], parties), []
    for name in ("student", "teacher"):
        network = parties[name]
        assert isinstance(network, TimmModel)
        network.body.patch_drop.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[1]))  # type: ignore[union-attr]
    values = {"x": torch.randint(256, (3, 3, SIDE, SIDE), dtype=torch.uint8)}
    first = module.value("visible", values)
    module.value("p.out", values)
    module.value("~t.decoder4", values)
    assert torch.equal(first, module.value("visible", values))
    assert first.sum(dim=1).tolist() == [4, 4, 4]


def test_a_stranger_to_the_paper_says_how_wide_its_decoder_is(parties: dict[str, nn.Module]) -> None:
    from kdcli.errors import InputError

    method = function("g2sd-generic")(Representation())
    networks = {name: parties[name] for name in ("student", "teacher")}
    made = {"x": torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), "y": torch.full((2,), -1)}
    with pytest.raises(InputError, match=r"decoders for students of width 192 and 384, and this one is 24"):
        assemble(method, networks, made, 0)


def test_a_teacher_without_a_decoder_is_refused(parties: dict[str, nn.Module]) -> None:
    from kdcli.errors import InputError

    teacher = parties["teacher"]
    assert isinstance(teacher, TimmModel)
    teacher.decoder = None
    method = function("g2sd-generic")(Representation(), decoder=16)
    made = {"x": torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8), "y": torch.full((2,), -1)}
    with pytest.raises(InputError, match="vit48 has no decoder, and 'decoder4' is a block of one"):
        assemble(method, {"student": parties["student"], "teacher": teacher}, made, 0)


@pytest.mark.parametrize(("width", "heads", "count"), [(192, 3, 7_534_400), (384, 6, 26_452_352)])
def test_students_of_the_paper_are_as_large_as_theirs(width: int, heads: int, count: int) -> None:
    """Theirs count fixed positions, a decoder norm and a reader of the encoder too, which train nothing."""
    body = timm.create_model("vit_tiny_patch16_224", embed_dim=width, num_heads=heads, num_classes=0)
    decoder = Decoder(width, {192: 128, 384: 256}[width], 4, 0, (14, 14))
    predictor = Predictor((197, int(decoder.facts["width"])), (197, 512))
    own = sum(p.numel() for m in (body, decoder, predictor) for p in m.parameters())
    theirs = count - decoder.pos_embed.numel()
    assert own <= theirs
    assert (theirs - own) / theirs < 0.12


def golden(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def large() -> tuple[Tensor, Tensor]:
    return golden(2, 197, 512, seed=1), 3 * golden(2, 197, 512, seed=2) + 0.5


def test_the_loss_is_that_of_the_reference(large: tuple[Tensor, Tensor]) -> None:
    prediction, hidden = large
    prediction = prediction.clone().requires_grad_()
    loss = generic_distillation(prediction, hidden)
    loss.backward()
    assert prediction.grad is not None
    assert loss.item() == pytest.approx(0.4727011, rel=1e-5)
    assert prediction.grad.norm().item() == pytest.approx(0.0013573, rel=1e-4)  # as many digits as printed


def test_losses_that_are_easily_mistaken_for_it_differ(large: tuple[Tensor, Tensor]) -> None:
    prediction, hidden = large
    normal = torch.nn.functional.layer_norm(hidden, (512,), eps=1e-6)
    ours = generic_distillation(prediction, hidden).item()
    masked = ~visible_of(torch.rand(2, 196, generator=torch.Generator().manual_seed(3)), ratio=0.75)
    wrong = {
        0.7213693: generic_distillation(prediction, hidden, beta=1.0),
        2.0049357: torch.nn.functional.mse_loss(prediction, normal),
        1.7174467: torch.nn.functional.smooth_l1_loss(prediction, hidden, beta=2.0),
        0.4726687: generic_distillation(prediction[:, 1:], hidden[:, 1:]),
        0.4734704: generic_distillation(prediction[:, 1:][masked], hidden[:, 1:][masked]),
    }
    for value, found in wrong.items():
        assert found.item() == pytest.approx(value, rel=1e-5)
        assert abs(ours - value) > 1e-5 * ours


# -- the specific stage --------------------------------------------------------------------------------------


def test_the_specific_loss_is_that_of_the_reference() -> None:
    """Half soft-target cross-entropy of one classifier, half hard distillation of the other."""
    own, distilled = golden(8, 10, seed=20), golden(8, 10, seed=21)
    teacher_logits, target = 2 * golden(8, 10, seed=22), (3 * golden(8, 10, seed=23)).softmax(dim=1)
    method = specific(Classification(tuple("abcdefghij")))
    module = TurnModule(method.turns[0], {"student": nn.Identity(), "teacher": nn.Identity()})
    values = {"s.head": own, "s.head_dist": distilled, "t.logits": teacher_logits, "target": target}
    batch = {**values, "labelled": torch.ones(8, dtype=torch.bool)}
    terms = {term.name: module.term(term, dict(batch), torch.ones(2)) for term in method.turns[0].terms}
    assert terms["ce"].item() == pytest.approx(2.7472060, rel=1e-5)
    assert terms["hard"].item() == pytest.approx(2.9438014, rel=1e-5)
    total = sum(float(term.weight) * terms[term.name].item() for term in method.turns[0].terms)  # type: ignore[arg-type]
    assert total == pytest.approx(2.8455038, rel=1e-5)


def test_the_token_learns_at_the_full_rate_under_layer_decay(
    pictures: Path, probed: Callable[[str], Path], tmp_path: Path
) -> None:
    options = method_options("g2sd-specific", pictures, probed, tmp_path, **{"optim.layer_decay": 0.5})
    plan = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(plan, distill.Plan)
    turn = plan.method.turns[0]
    module = TurnModule(turn, plan.material.assembly.parties)
    optimizer = build_optimizer(module.trained, plan.config.optim, turn.groups)
    body: Any = module.trained["student"].body
    scales = {
        name: group["lr_scale"]
        for group in optimizer.param_groups
        for name, own in body.named_parameters()
        if any(own is parameter for parameter in group["params"])
    }
    assert scales["dist_token"] == scales["head.weight"] == scales["head_dist.weight"] == 1
    assert scales["cls_token"] == scales["pos_embed"] == scales["patch_embed.proj.weight"] < 0.2


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_the_specific_stage_runs_and_its_token_has_no_position(
    mixup: float, pictures: Path, probed: Callable[[str], Path], tmp_path: Path
) -> None:
    more = {"optim.mixup": mixup, "optim.label_smoothing": 0.1}
    options = method_options("g2sd-specific", pictures, probed, tmp_path, **more)
    plan = distill.plan(resolve(distill.Config, options=options), QUIET)
    path = distill.run(plan, QUIET).path
    body = timm.create_model(f"local-dir:{path}", pretrained=True)
    assert type(body).__name__ == "VisionTransformerDistilled"
    assert not body.pos_embed[0, 1].any()
    assert body.pos_embed[0, 0].any()
    seen = [row for row in rows(path) if "hard" in row]
    assert all(row["loss"] == pytest.approx((row["ce"] + row["hard"]) / 2, rel=1e-4) for row in seen)


def test_nkd_trains_the_one_classifier(pictures: Path, probed: Callable[[str], Path], tmp_path: Path) -> None:
    more = {"method.nkd": 1.0, "method.hard": "absent", "optim.cutmix": 1.0}
    options = method_options("g2sd-specific", pictures, probed, tmp_path, **more)
    path = distill.run(distill.plan(resolve(distill.Config, options=options), QUIET), QUIET).path
    assert type(timm.create_model(f"local-dir:{path}")).__name__ == "VisionTransformer"
    assert any("nkd" in row for row in rows(path))


def test_of_a_mixed_picture_the_larger_part_counts() -> None:
    y = torch.tensor([2, 0])
    assert larger_part(y) is y
    assert larger_part(torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]])).tolist() == [1, 0]
