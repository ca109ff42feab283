"""A distillation token: timm's network, and the same with the token behind the patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toolbox import commit_model
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.distilled import PLACE, give_token, is_distilled, without_position
from kdcli.models.timm import TimmModel

CLASSES = ["a", "b", "c"]


def vit(name: str = "vit_tiny_patch16_224", **more: Any) -> TimmModel:
    name = f"{name},patch_size=8,embed_dim=48,depth=2,num_heads=3"
    network = build(name, Wanted(CLASSES), pretrained=False, size=32, **more)
    assert isinstance(network, TimmModel)
    return network.eval()


def pictures() -> Tensor:
    return torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_it_is_the_network_with_a_token_behind_the_patches_that_has_no_position() -> None:
    network = vit()
    plain: Any = network.body
    with torch.no_grad():
        plain.head.weight.normal_()
    network.fresh = False
    give_token(network)
    made: Any = network.eval().body
    with torch.no_grad():
        made.head_dist.weight.normal_()
        x = network.prepare(pictures())
        tokens = torch.cat([plain._pos_embed(plain.patch_embed(x)), made.dist_token.expand(3, -1, -1)], dim=1)
        tokens = plain.norm(plain.blocks(tokens))
        wanted = (plain.head(tokens[:, 0]) + made.head_dist(tokens[:, -1])) / 2
        torch.testing.assert_close(network(pictures()), wanted)
        taps = network.call([pictures()], ["head", "head_dist", "logits"])
    torch.testing.assert_close(taps["logits"], (taps["head"] + taps["head_dist"]) / 2)


def test_new_classifiers_begin_near_zero_and_a_learned_one_goes_on() -> None:
    network = vit()
    give_token(network)
    body: Any = network.body
    for linear in (body.head, body.head_dist):
        assert 0 < linear.weight.abs().max() < 1e-4
        assert not linear.bias.any()
    learned = vit()
    learned.fresh = False
    before = learned.body.head.weight.clone()  # type: ignore[union-attr, operator]
    give_token(learned)
    assert torch.equal(learned.body.head.weight, before)  # type: ignore[union-attr, arg-type]


def test_plain_timm_loads_it_and_a_second_time_it_is_left_alone(tmp_path: Path) -> None:
    network = vit()
    give_token(network)
    with torch.no_grad():
        network.body.head_dist.weight.normal_()  # type: ignore[union-attr, operator]
    path = commit_model(network.eval(), tmp_path / "student")
    body = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(body(network.prepare(pictures())), network(pictures()))
    again = build(str(path), Wanted(CLASSES))
    assert isinstance(again, TimmModel)
    before = again.body
    assert is_distilled(again)
    give_token(again)
    assert again.body is before


def test_the_order_of_classes_is_that_of_both_classifiers(tmp_path: Path) -> None:
    network = vit()
    give_token(network)
    with torch.no_grad():
        for linear in (network.body.head, network.body.head_dist):  # type: ignore[union-attr]
            linear.weight.normal_()  # type: ignore[union-attr, operator]
    path = commit_model(network.eval(), tmp_path / "student")
    turned = build(str(path), Wanted(["c", "a", "b"])).eval()
    with torch.no_grad():
        torch.testing.assert_close(turned(pictures()), network(pictures())[:, [2, 0, 1]])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2", "test_vit3", "deit3_small_patch16_224"])
def test_a_student_that_timm_has_none_of_is_refused(name: str) -> None:
    network = build(name, Wanted(CLASSES), pretrained=False)
    assert isinstance(network, TimmModel)
    with pytest.raises(InputError, match=f"{name} .* is no ViT that timm has with a distillation token"):
        give_token(network)


def test_the_token_never_gets_a_position() -> None:
    gradients = {"body.pos_embed": torch.ones(1, 6, 4)}
    weights = torch.ones(1, 6, 4).index_fill(1, torch.tensor(PLACE), 0)
    found = without_position(gradients, {"body.pos_embed": weights})["body.pos_embed"]
    assert not found[:, PLACE].any()
    assert found.sum() == 5 * 4
    assert gradients["body.pos_embed"].all(), "nothing is changed in place"
    assert not without_position(gradients, {"body.pos_embed": torch.ones(1, 6, 4)}), "DeiT's goes on learning"


@pytest.mark.parametrize("argument", ["act_layer=relu", "drop_rate=0.5", "attn_drop_rate=0.25"])
def test_parts_without_weights_are_the_student_s(argument: str) -> None:
    network = build(f"test_vit,{argument}", Wanted(CLASSES), pretrained=False)
    assert isinstance(network, TimmModel)
    before = [(name, type(m), getattr(m, "p", None)) for name, m in network.body.named_modules() if name]
    give_token(network)
    after = {name: (name, type(m), getattr(m, "p", None)) for name, m in network.body.named_modules()}
    assert before == [after[name] for name, _, _ in before]


def test_a_part_that_timm_s_has_not_is_refused() -> None:
    network = build("test_vit,patch_drop_rate=0.5", Wanted(CLASSES), pretrained=False)
    assert isinstance(network, TimmModel)
    with pytest.raises(
        InputError, match="is no ViT that timm has with a distillation token: its patch_drop is"
    ):
        give_token(network)


def test_stochastic_depth_comes_along() -> None:
    network = vit(drop_path=0.2)
    give_token(network)
    rates = [m.drop_prob for m in network.body.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    assert isinstance(network.body, nn.Module)
