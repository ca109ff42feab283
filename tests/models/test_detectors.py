"""RT-DETR and D-FINE: transformers' own boxes and losses, on maps of timm's networks and whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_decoders import saved
from torch import nn

from kdcli.errors import InputError, UsageError
from kdcli.models import detecting, detectors
from kdcli.models.build import Wanted, build
from kdcli.models.detecting import Objects
from kdcli.models.heads.detection import DetectionHead, ends, widths
from kdcli.models.timm import TimmModel
from kdcli.sections import DETECTORS

CLASSES = ["tree", "car", "a roof"]
KINDS = ("light,num_queries=12", "dfine,num_queries=12,decoder_layers=2,d_model=32,encoder_hidden_dim=32")
SMALL = "decoder_attention_heads=4,encoder_attention_heads=4,decoder_ffn_dim=32,encoder_ffn_dim=32"


def network(kind: str = KINDS[0], name: str = "test_resnet", size: int = 96, seed: int = 0) -> Any:
    kind = f"{kind},{SMALL}" if kind.startswith("dfine") else kind
    wanted = Wanted(CLASSES, task="detection", head=kind, kind=kind)
    return build(name, wanted, pretrained=False, size=size, seed=seed).eval()


def test_the_command_line_knows_each_kind() -> None:
    assert set(DETECTORS) == set(detectors.KINDS)


def views(count: int = 3, size: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def objects(*counts: int, labelled: tuple[int, ...] | None = None) -> Objects:
    draw = torch.Generator().manual_seed(2)
    boxes = [torch.rand(n, 4, generator=draw) * 0.4 + 0.2 for n in counts]
    classes = [torch.randint(len(CLASSES), (n,), generator=draw) for n in counts]
    kept = torch.tensor(labelled or (1,) * len(counts)).bool()
    return Objects(boxes, classes, kept)


def beside(found: Objects) -> list[Any]:
    return [found.boxes, found.classes, found.labelled]


# -- maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "levels"),
    [("test_resnet", 96, (12, 6, 3)), ("test_convnext", 64, (8, 4, 2)), ("test_vit", 64, (8, 4, 2))],
)
def test_it_reads_three_maps_of_stages_or_of_a_vit(name: str, size: int, levels: tuple[int, ...]) -> None:
    made = network(name=name, size=size)
    with torch.no_grad():
        found = made.call(
            [views(2, size)], ("logits", "boxes", "neck1", "neck2", "neck3", "objectness3", "grid")
        )
    assert found["logits"].shape == (2, 12, 3)
    assert found["boxes"].shape == (2, 12, 4)
    assert [found[f"neck{k}"].shape[-1] for k in (1, 2, 3)] == list(levels)
    assert found["objectness3"].shape == (2, levels[2], levels[2])
    assert made.logit_shape == (12, 3)
    assert (made.spec.crop, made.spec.crop_mode) == (1.0, "squash")


def test_the_maps_are_the_last_of_each_stride_and_the_pyramid_that_of_the_last_block() -> None:
    made, x = network(), views(1)
    with torch.no_grad():
        maps = made.head.read(made, made.prepare(x))[1]
        body = made.body
        own = body.layer2(body.layer1(body.maxpool(body.act1(body.bn1(body.conv1(made.prepare(x)))))))
        assert torch.equal(maps[0], own)
        vit = network(name="test_vit", size=64)
        prepared = vit.prepare(views(1, 64))
        tokens = vit.body.forward_features(prepared)[:, vit.body.num_prefix_tokens :]
        last = tokens.transpose(1, 2).unflatten(2, (4, 4))
        fine, same, coarse = vit.head.read(vit, prepared)[1]
    assert torch.equal(same, last)
    assert torch.equal(fine, vit.head.pyramid(last))
    assert torch.equal(coarse, nn.functional.max_pool2d(last, 2))


def test_objectness_is_the_largest_class_logit_of_each_place() -> None:
    made = network()
    x = made.prepare(views())
    with torch.no_grad():
        maps = made.head.read(made, x)[1]
        outputs = detecting.run(made.head.detector, x, maps, None)
        found = made.call([x], ("objectness1", "objectness2", "objectness3"))
    flat = torch.cat([found[f"objectness{k}"].flatten(1) for k in (1, 2, 3)], dim=1)
    assert torch.equal(flat, outputs.enc_outputs_class.max(dim=2).values)


@pytest.mark.parametrize("size", [80, 100])
def test_maps_that_do_not_halve_are_refused(size: int) -> None:
    with pytest.raises(InputError, match="each is half as large as the one before it, and these are"):
        network(size=size).call([views(1, size)], ("logits",))


def test_fewer_places_than_queries_are_refused() -> None:
    made = network("light,num_queries=60", size=32)
    with pytest.raises(InputError, match=r"60 queries has only 21 places .*num_queries=21"):
        made(views(1, 32))


def test_a_network_of_too_few_strides_is_refused() -> None:
    body = nn.Module()
    body.feature_info = [{"reduction": 8, "num_chs": 4, "module": "a"}]  # type: ignore[assignment]
    assert ends(body) == [0]  # one stride: a plain ViT's
    body.feature_info = [{"reduction": r, "num_chs": 4, "module": "a"} for r in (4, 8)]  # type: ignore[assignment]
    with pytest.raises(InputError, match="has maps of stride 4, 8, and a detector reads three"):
        widths(body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("heavy", "no detector 'heavy'"),
        ("light,queries=5", "no setting 'queries=5'.*num_queries"),
        ("light,num_queries=5,num_queries=6", "num_queries is given a second time"),
        ("light,num_queries=many", "num_queries is a whole number, got 'many'"),
        ("light,num_queries=1e9", "num_queries is a whole number"),
        ("light,dropout=5", r"dropout is between 0 and 0\.99"),
        ("light,decoder_layers=0", "decoder_layers is between 1 and 24"),
        ("light,decoder_layers=5000", "decoder_layers is between 1 and 24"),
        ("light,encoder_layers=25", "encoder_layers is between 0 and 24"),
        ("light,d_model=65536", "d_model is between 8 and 2,048"),
        ("light,encoder_hidden_dim=65536", "encoder_hidden_dim is between 8 and 2,048"),
        ("light,num_queries=0", "num_queries is between 1 and 10,000"),
        ("light,batch_norm_eps=0", "batch_norm_eps is between"),
        ("light,label_noise_ratio=nan", "label_noise_ratio is between 0 and 1"),
        ("light,normalize_before=yes", "normalize_before is true or false"),
        ("light,learn_initial_query=true", "no setting 'learn_initial_query=true'"),
        ("light,encoder_in_channels=3", "no setting 'encoder_in_channels=3'"),
    ],
)
def test_settings_that_a_detector_has_not_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detectors.parsed(text)


def test_settings_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(InputError, match="head=light,d_model=30"):
        detectors.make("light", {"d_model": 30}, [8, 8, 8], 2)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_convolutions_and_norms_begin_as_torch_has_them(kind: str) -> None:
    detector = network(kind).head.detector
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 10
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    for module in (m for m in detector.modules() if isinstance(m, nn.Conv2d)):
        bound = (module.in_channels // module.groups * module.kernel_size[0] ** 2) ** -0.5  # Kaiming, a = √5
        assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound


def test_the_first_boxes_of_rt_detr_are_its_anchors() -> None:
    made = network()
    with torch.no_grad():
        boxes = made.call([views(1)], ("boxes",))["boxes"][0]
    sides = {round(float(side), 4) for side in boxes[:, 2:].flatten()}
    assert sides <= {0.05, 0.1, 0.2}


# -- losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_its_losses_are_those_of_transformers(kind: str, training: bool) -> None:
    made, given = network(kind), objects(2, 0, 3)
    detector = made.head.detector
    with torch.no_grad():
        maps = made.head.read(made, made.prepare(views()))[1]
        detector.train(training)
        torch.manual_seed(5)
        wanted = detector(maps[0], pixel_mask=maps, labels=given.targets()).loss
        torch.manual_seed(5)
        found = detecting.losses(detector, detecting.run(detector, maps[0], maps, given), given)
    total = found["loss_class"].mean() + found["loss_box"].mean()
    assert total / (5 / 3) == pytest.approx(float(wanted), rel=1e-5)  # over objects, not over pictures


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_that_nobody_looked_through_have_no_part_in_them(kind: str) -> None:
    made, whole = network(kind), objects(2, 4, 0, 1)
    some = Objects(whole.boxes, whole.classes, torch.tensor([True, False, True, True]))
    x = views(4)
    with torch.no_grad():
        found = made.call([x, *beside(some)], ("loss_class", "loss_box"))
        rows = [0, 2, 3]
        few = [[whole.boxes[i] for i in rows], [whole.classes[i] for i in rows], torch.ones(3).bool()]
        alone = made.call([x[rows], *few], ("loss_class", "loss_box"))
    for name in ("loss_class", "loss_box"):
        assert found[name][1] == 0
        torch.testing.assert_close(found[name][rows], alone[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labelled", [(1, 1), (0, 0)])
def test_batches_without_objects_have_losses_and_gradients(kind: str, labelled: tuple[int, ...]) -> None:
    made, given = network(kind).train(), objects(0, 0, labelled=labelled)
    found = made.call([views(2), *beside(given)], ("loss_class", "loss_box"))
    loss = found["loss_class"].mean() + found["loss_box"].mean()
    loss.backward()
    assert loss.isfinite()
    assert bool((found["loss_box"] == 0).all())
    assert bool(loss > 0) == bool(labelled[0])
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())


def test_queries_made_of_objects_are_in_losses_alone() -> None:
    made, given = network().train(), objects(2, 1, 0)
    found = made.call([views(), *beside(given)], ("logits", "boxes", "loss_class"))
    assert found["logits"].shape == (3, 12, 3)
    assert found["boxes"].shape == (3, 12, 4)
    torch.autograd.backward(found["loss_class"].mean())
    assert made.head.detector.model.denoising_class_embed.weight.grad is not None


def test_answers_that_are_no_numbers_give_losses_that_are_none() -> None:
    made = network()
    with torch.no_grad():
        made.head.linear.bias.fill_(torch.nan)
        found = made.call([views(2), *beside(objects(1, 1))], ("loss_class", "loss_box"))
    assert bool(found["loss_class"].isnan().all())


def test_losses_of_a_call_without_objects_are_refused() -> None:
    with pytest.raises(InputError, match="'loss_box' is of a call in which a network in training is given"):
        network().call([views()], ("loss_box",))


# -- detections ----------------------------------------------------------------------------------------------


def test_detections_are_those_of_transformers_post_processing() -> None:
    from transformers import RTDetrImageProcessor

    made, x = network("light,num_queries=40", size=128), views(2, 128)
    with torch.no_grad():
        answers = made.call([x], ("logits", "boxes"))
        found = made(x)
    outputs = type("Outputs", (), {"logits": answers["logits"], "pred_boxes": answers["boxes"]})
    wanted = RTDetrImageProcessor().post_process_object_detection(outputs, threshold=0.0)
    assert found.shape == (2, 100, 6)
    for own, theirs in zip(found, wanted):
        torch.testing.assert_close(own[:40, 4], theirs["scores"])
        assert torch.equal(own[:40, 5].long(), theirs["labels"])
        torch.testing.assert_close(own[:40, :4], theirs["boxes"])


# -- as files, with other classes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_it_comes_back_from_its_files(kind: str, name: str, tmp_path: Path) -> None:
    made = network(kind, name, size=64)
    saved(made, tmp_path / "model")
    back = build(str(tmp_path / "model")).eval()
    assert isinstance(back.head, DetectionHead)
    assert (back.task, back.head.kind, back.spec) == ("detection", made.head.kind, made.spec)
    with torch.no_grad():
        assert torch.equal(back(views(2, 64)), made(views(2, 64)))


@pytest.mark.parametrize("kind", KINDS)
def test_classes_change_places_in_every_layer_that_knows_them(kind: str) -> None:
    made, given = network(kind), objects(2, 1, 3)
    order = [2, 0, 1]
    renamed = [torch.tensor([order.index(int(c)) for c in cs]).long() for cs in given.classes]
    moved = Objects(given.boxes, renamed, given.labelled)
    x, embedded = views(), made.head.detector.model.denoising_class_embed.weight
    rows = embedded.detach().clone()
    with torch.no_grad():
        before = made.call([x, *beside(given)], ("logits", "boxes", "loss_class"))
        made.reorder(order, [CLASSES[i] for i in order])
        after = made.call([x, *beside(moved)], ("logits", "boxes", "loss_class"))
    torch.testing.assert_close(after["logits"], before["logits"][..., order])
    torch.testing.assert_close(after["boxes"], before["boxes"])
    torch.testing.assert_close(after["loss_class"], before["loss_class"])
    assert torch.equal(embedded, rows[[*order, 3]])  # the last one is of no class


def test_other_classes_leave_what_knows_none(tmp_path: Path) -> None:
    made = network()
    saved(made, tmp_path / "model")
    wanted = Wanted(["cat", "dog"], task="detection", head="light", kind=None)
    other = build(str(tmp_path / "model"), wanted).eval()
    assert other.notes == (
        f"the classifier of {tmp_path / 'model'} for 3 classes gives way to a fresh one for 2",
    )
    with torch.no_grad():
        mine, theirs = (n.call([views()], ("neck1", "neck3")) for n in (made, other))
    assert torch.equal(mine["neck1"], theirs["neck1"])
    assert other.logit_shape == (12, 2)
    bigger = build(
        str(tmp_path / "model"),
        Wanted(CLASSES, task="detection", head="rtdetr", kind="light,num_queries=20"),
    )
    assert "Another kind of head is asked for: light,num_queries=20" in bigger.notes[0]
    assert bigger.logit_shape == (20, 3)


def test_a_frozen_body_stays_in_eval_mode_and_learns_nothing() -> None:
    made: TimmModel = network()
    made.freeze_body()
    made.train()
    assert not any(part.training for part in made.body.modules())
    assert made.head is not None
    assert made.head.training
    assert not any(p.requires_grad for p in made.body.parameters())
    assert all(p.requires_grad for p in made.head.parameters())


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"d_model": 1e9}, "d_model"), ({"num_queries": "many"}, "num_queries"), ([], "none")],
)
def test_a_description_that_is_none_is_refused(settings: Any, what: str, tmp_path: Path) -> None:
    import json

    from kdcli.models.heads import described

    made = network()
    config = {"kind": "light", "settings": settings}
    tensors = made.head.state_dict()
    if what == "none":
        assert described(config, tensors, made.body) is None
        return
    with pytest.raises(InputError, match=f"describes no detector: .*{what}"):
        described(json.loads(json.dumps(config)), tensors, made.body)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_one_picture_has_the_gradient_of_the_same_picture_twice(name: str) -> None:
    """torch's batch norms on a CPU have another one, of one picture and a transposed gradient."""
    made, x, one = network("light,num_queries=12,num_denoising=0", name, size=64), views(1, 64), objects(3)
    found = []
    for times in (1, 2):
        made.zero_grad()
        given = [one.boxes * times, one.classes * times, torch.ones(times).bool()]
        losses = made.call([x.repeat(times, 1, 1, 1), *given], ("loss_class", "loss_box"))
        (losses["loss_class"].mean() + losses["loss_box"].mean()).backward()
        found.append({n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], rtol=1e-3, atol=1e-4, msg=key)


def test_a_detector_for_as_many_other_classes_is_kept_but_for_what_knows_them(tmp_path: Path) -> None:
    made = network()
    saved(made, tmp_path / "model")
    other = build(str(tmp_path / "model"), Wanted(["x", "y", "z"], task="detection", head="rtdetr"))
    assert "names them otherwise" in other.notes[0]
    assert other.logit_shape == (12, 3)
    with torch.no_grad():
        mine, theirs = (n.eval().call([views()], ("neck2",))["neck2"] for n in (made, other))
    assert torch.equal(mine, theirs)
