"""Boxes from disk to metric: probe, distill and eval on real small pictures, in process."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import DETECTOR, QUIET, StopAfter, detector, facts, in_process, rows, squares

from kdcli.config import resolve
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.stages import distill, evaluate, probe

HEAD = "light,num_queries=20,num_denoising=20"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("boxes") / "squares", {"train": 64, "validation": 16, "test": 16})


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import toys

    return toys.checkpoint("test_resnet", tmp_path_factory.mktemp("weights") / "resnet.safetensors")


def probed(data: Path, backbone: Path, out: Path, /, **more: Any) -> Any:
    options = {
        **{"teacher": "test_resnet", "weights": str(backbone), "image_size": 64, "head": HEAD},
        **{"data.source": str(data), "out": str(out), "grid.epochs": 2, "grid.batch_size": 16},
        **more,
    }
    kept = {key: value for key, value in options.items() if value != "absent"}
    return probe.plan(resolve(probe.Config, options=kept), QUIET)


def distilled(data: Path, out: Path, /, **more: Any) -> Any:
    options = {
        **{"student": "test_resnet", "from_scratch": True, "image_size": 64, "head": HEAD},
        **{"data.source": str(data), "out": str(out), "cache": str(out.parent / "cache")},
        **{"optim.max_steps": 4, "optim.batch_size": 8, "log_every": 1},
        **more,
    }
    return distill.plan(resolve(distill.Config, options=options), QUIET)


def measured(data: Path, out: Path, *models: Path, **more: Any) -> dict[str, Any]:
    options = {"models": [str(m) for m in models], "data.source": str(data), "out": str(out), "cost": False}
    path = evaluate.run(
        evaluate.plan(resolve(evaluate.Config, options={**options, **more}), QUIET), QUIET
    ).path
    return json.loads((path / "report.json").read_text())


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("agreement>=0.5", "'agreement' is not measured in this run: it is no figure of this task"),
        ("top1>=0.5", "'top1' is not measured in this run: it takes"),
        ("teacher_recall>=0.5", "'teacher_recall' is not measured in this run: it takes --teacher"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_before(
    gate: str, message: str, data: Path, tmp_path: Path
) -> None:
    model = detector(tmp_path / "model")
    more = {"teacher": str(model)} if gate.startswith("agreement") else {}
    with pytest.raises(UsageError, match=message):
        measured(data, tmp_path / "report", model, require=[gate], **more)


def test_a_probe_trains_the_detector_and_leaves_the_backbone(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    made = probed(data, backbone, tmp_path / "teacher")
    out = probe.run(made, QUIET).path
    found = build(str(out))
    own = made.network.body.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in found.body.state_dict().items())  # statistics too
    before = made.network.head.state_dict()
    changed = [name for name, t in found.head.state_dict().items() if not torch.equal(t, before[name])]
    assert len(changed) > 100
    kept = facts(out)
    assert (kept["task"], kept["layout"], kept["classes"]) == ("detection", "kdcli", ["red", "green"])
    assert {"validation/ap", "validation/ap50"} <= kept["metrics"].keys()
    assert kept["selection"].startswith("best on validation, step")
    assert "grid" not in kept


def test_finetuning_trains_the_backbone_too(data: Path, backbone: Path, tmp_path: Path) -> None:
    more = {"finetune": True, "grid.epochs": "absent", "grid.batch_size": "absent"}
    made = probed(data, backbone, tmp_path / "teacher", **more, **{"optim.max_steps": 2, "optim.lr": 1e-3})
    found = build(str(probe.run(made, QUIET).path))
    own = made.network.body.state_dict()
    assert not all(torch.equal(t, own[name]) for name, t in found.body.state_dict().items())


def test_a_ready_detector_is_kept_where_its_classes_are_those_of_the_data(data: Path, tmp_path: Path) -> None:
    ready = detector(tmp_path / "ready")
    options = {"teacher": str(ready), "head": "keep", "data.source": str(data), "out": str(tmp_path / "kept")}
    out = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
    x = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(build(str(out)).eval()(x), build(str(ready)).eval()(x))
    other = squares(tmp_path / "others", {"train": 8})
    import datasets

    table = datasets.load_from_disk(str(other))["train"]
    names = datasets.List(datasets.ClassLabel(names=["blue", "green"]))
    features = table.features.copy()
    features["objects"] = {**features["objects"], "category": names}
    table.cast(features).save_to_disk(str(tmp_path / "renamed"))
    options |= {"data.source": str(tmp_path / "renamed"), "out": str(tmp_path / "no")}
    with pytest.raises(InputError, match=r"name their classes differently \(blue, red, …\)"):
        probe.plan(resolve(probe.Config, options=options), QUIET)


def test_a_student_learns_to_find_them(data: Path, tmp_path: Path) -> None:
    """Two colours of squares are learned by anything that learns: not by what is put together wrongly."""
    more = {
        "optim.max_steps": 150,
        "optim.batch_size": 16,
        "optim.lr": 3e-3,
        "evaluate_steps": 50,
        "log_every": 10,
    }
    made = distilled(data, tmp_path / "student", **more, **{"method.name": "supervised"})
    out = distill.run(made, QUIET).path
    report = measured(data, tmp_path / "report", out)
    (model,) = report["models"]
    assert model["metrics"]["ap50"] > 0.25
    assert [c["boxes"] for c in model["classes"]] == [int(c["boxes"]) for c in model["classes"]]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png") >= 8  # truth and detections of four pictures
    assert "AP50" in page


def test_a_cached_teacher_teaches_as_a_live_one_does(data: Path, tmp_path: Path) -> None:
    """In a first epoch, whose views are the same: what a cache keeps in fp32 is what the teacher says."""
    more = {"teacher": [str(detector(tmp_path / "teacher"))], "views.store": "fp32"}
    cached = distilled(data, tmp_path / "cached", **more, **{"views.count": "1"})
    assert cached.material.cached
    assert cached.material.teacher_forwards == 32
    del more["views.store"]
    live = distilled(data, tmp_path / "live", **more, **{"views.count": "live"})
    assert not live.material.cached
    found = [
        [r["queries"] for r in rows(distill.run(p, QUIET).path) if "queries" in r] for p in (cached, live)
    ]
    assert len(found[0]) == 4
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", ["g2sd-detection", "cwd-features"])
def test_methods_of_features_run_live_and_say_so(name: str, data: Path, tmp_path: Path) -> None:
    teacher = [str(detector(tmp_path / "teacher"))]
    made = distilled(data, tmp_path / "out", teacher=teacher, **{"method.name": name})
    assert not made.material.cached
    with pytest.raises(UsageError, match="methods that read more of the teacher, need --views live"):
        distilled(data, tmp_path / "out", teacher=teacher, **{"method.name": name, "views.count": "2"})


def test_crops_that_keep_boxes_are_live(data: Path, tmp_path: Path) -> None:
    more = {"teacher": [str(detector(tmp_path / "teacher"))], "views.iou_crop": 0.8, "views.zoom_out": 0.5}
    made = distilled(data, tmp_path / "out", **more)
    assert not made.material.cached
    distill.run(made, QUIET)
    with pytest.raises(UsageError, match=r"crops that follow boxes \(views\.iou_crop\)"):
        distilled(data, tmp_path / "no", **more, **{"views.count": "2"})


def test_the_teacher_stays_as_it_was(data: Path, tmp_path: Path) -> None:
    teacher = detector(tmp_path / "teacher")
    made = distilled(data, tmp_path / "out", teacher=[str(teacher)], **{"views.count": "live"})
    network = made.material.networks["teacher"]
    before = {name: t.clone() for name, t in network.state_dict().items()}
    distill.run(made, QUIET)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_stopped_probe_continues_bit_for_bit(step: int, data: Path, backbone: Path, tmp_path: Path) -> None:
    more = {"grid.epochs": 1}
    whole = probe.run(probed(data, backbone, tmp_path / "whole", **more), QUIET).path
    made = probed(data, backbone, tmp_path / "stopped", **more)
    with pytest.raises(Preempted):
        probe.run(made, QUIET, stop=StopAfter(step))
    stopped = probe.run(made, QUIET).path
    for name in ("model.safetensors", "head.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_pictures_without_objects_alone_make_a_batch(data: Path, tmp_path: Path) -> None:
    """Every fourth picture has none: batches of two meet that often, and their losses are numbers."""
    more = {"optim.batch_size": 2, "optim.max_steps": 32, "evaluate_steps": 32}
    out = distill.run(distilled(data, tmp_path / "out", **more, **{"method.name": "supervised"}), QUIET).path
    logged = [row for row in rows(out) if "box" in row]
    assert all(math.isfinite(row["loss"]) for row in logged)
    assert any(row["box"] == 0 for row in logged)


def test_two_teachers_are_refused(data: Path, tmp_path: Path) -> None:
    teachers = [str(detector(tmp_path / f"teacher{i}", seed=i)) for i in (1, 2)]
    with pytest.raises(UsageError, match="2 teachers have no mean for detection"):
        distilled(data, tmp_path / "out", teacher=teachers)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optim.mixup": 0.2}, "detection has no optim.mixup and optim.cutmix"),
        ({"optim.label_smoothing": 0.1}, "detection has no optim.label_smoothing"),
        ({"views.auto_augment": "rand-m9"}, "detection has no views.auto_augment"),
        ({"views.store": "top20"}, "detection has no views.store=topK"),
        ({"data.class_balance": "sampler"}, "--class-balance evens out pictures by their class"),
        ({"head": "segformer"}, "head=segformer: detection has rtdetr, dfine, light"),
        ({"method.name": "dkd"}, "method dkd is for classification, and these data are for detection"),
        ({"image_size": 72}, "each is half as large as the one before it"),
    ],
)
def test_what_it_has_not_is_refused(more: dict[str, Any], message: str, data: Path, tmp_path: Path) -> None:
    name = {} if "method.name" in more else {"method.name": "supervised"}
    teacher = {"teacher": [str(detector(tmp_path / "t"))]} if "method.name" in more else {}
    with pytest.raises((UsageError, InputError), match=message):
        distilled(data, tmp_path / "out", **name, **teacher, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head": "fit", "grid.lr": [1e-3, 1e-2]}, "a detector is trained once: one grid.lr"),
        ({"protocol": "dinov2"}, "detection has no --protocol dinov2"),
        ({"grid.solver": "sgd"}, "grid.solver is given, and one detector is trained"),
        (
            {"head": "ligt"},
            r"--head: no such head\. Did you mean 'light'\? There are: fit, none",
        ),
        ({"head": "light,num_queries=300"}, "300 queries has only 84 places"),
        ({"head": "rtdetr", "image_size": 72}, "each is half as large"),
        ({"head": "none"}, "--head none: networks for detection answer by a head"),
        ({"views.count": "4"}, "--views is given, and every view is new"),
        (
            {"finetune": True},
            r"--epochs is given|grid.epochs is given, and with --finetune head and backbone",
        ),
    ],
)
def test_what_a_probe_of_it_has_not_is_refused(
    more: dict[str, Any], message: str, data: Path, backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        probed(data, backbone, tmp_path / "out", **more)


def test_detectors_are_for_boxes_alone(pictures: Path, backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="head=light: classification has one head only"):
        probed(pictures, backbone, tmp_path / "out", head="light")
    options = {
        "student": "test_resnet",
        "from_scratch": True,
        "data.source": str(pictures),
        "views.iou_crop": 0.5,
    }
    with pytest.raises(UsageError, match=r"views\.iou_crop keeps boxes, and .* for classification"):
        distill.plan(resolve(distill.Config, options={**options, "method.name": "supervised"}), QUIET)


def test_the_whole_way_by_the_command_line(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A COCO folder in, a gate at the end; one stage hands its path to the next."""
    monkeypatch.chdir(tmp_path)
    folder = coco(data, tmp_path / "my pictures")
    common = ["--data", str(folder), "--quiet"]
    size = ["--image-size", "64"]
    backbone_of = ["--teacher", "test_resnet", "--weights", str(backbone), "--head", HEAD, "--epochs", "1"]
    code, teacher, told = in_process(capsys, "probe", *backbone_of, *size, *common)
    assert code == 0, told
    student_of = ["--teacher", teacher.strip(), "--student", "test_resnet", "--from-scratch"]
    student_of += ["--set", f"head={DETECTOR}", "--max-steps", "2", "--batch-size", "8"]
    code, student, told = in_process(capsys, "distill", *student_of, *size, *common)
    assert code == 0, told
    gates = ["--require", "ap50>=0", "--require", "ap>=0.99"]
    models = [student.strip(), "--teacher", teacher.strip(), "--no-cost"]
    code, report, told = in_process(capsys, "eval", *models, *gates, *common)
    assert code == 5
    assert "ap>=0.99 does not hold" in told
    assert "ap50>=0 " not in told
    assert Path(report.strip(), "report.html").exists()


def coco(data: Path, folder: Path) -> Path:
    """The squares as COCO has them: a JSON for each split, and pictures beside."""
    import datasets

    (folder / "annotations").mkdir(parents=True)
    for split, table in datasets.load_from_disk(str(data)).items():
        name = {"validation": "val"}.get(split, split)
        (folder / name).mkdir()
        images, found = [], []
        for number, row in enumerate(table.cast_column("image", datasets.Image())):
            row["image"].save(folder / name / f"{number}.png")
            width, height = row["image"].size
            images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
            for box, label in zip(row["objects"]["bbox"], row["objects"]["category"]):
                found.append(
                    {
                        "id": len(found),
                        "image_id": number,
                        "category_id": label + 5,
                        "bbox": box,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": 5, "name": "red"}, {"id": 6, "name": "green"}]
        written = {"images": images, "annotations": found, "categories": categories}
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(written))
    return folder


def test_a_split_without_objects_cannot_choose(data: Path, tmp_path: Path) -> None:
    folder = coco(data, tmp_path / "coco")
    file = folder / "annotations" / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(InputError, match="none of the 16 pictures of validation has an object that counts"):
        distilled(folder, tmp_path / "out", **{"method.name": "supervised"})


def test_files_of_one_convention_have_no_other(data: Path, tmp_path: Path) -> None:
    folder = coco(data, tmp_path / "coco")
    with pytest.raises(UsageError, match=r"data\.box_format=xyxy: COCO files have one convention"):
        distilled(folder, tmp_path / "out", **{"method.name": "supervised", "data.box_format": "xyxy"})


def test_a_probe_learns_at_the_rate_of_its_task(data: Path, backbone: Path, tmp_path: Path) -> None:
    assert probed(data, backbone, tmp_path / "a").config.finetuning().optim.lr == 1e-3
    more = {"grid.lr": [5e-3]}
    assert probed(data, backbone, tmp_path / "b", **more).config.finetuning().optim.lr == 5e-3
    tuned = {"finetune": True, "grid.epochs": "absent", "grid.batch_size": "absent"}
    assert probed(data, backbone, tmp_path / "c", **tuned).config.finetuning().optim.lr == 5e-5


def test_integers_of_a_detector_are_dynamic(data: Path, tmp_path: Path) -> None:
    from kdcli.stages import compress

    options = {"student": str(detector(tmp_path / "model")), "method.name": "none", "data.source": str(data)}
    options |= {"export": ["onnx"], "quantize": "int8", "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=r"is a detector, .* Take --quantize int8-dynamic"):
        compress.plan(resolve(compress.Config, options=options), QUIET)


def test_a_half_written_data_set_is_refused_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    folder = coco(data, tmp_path / "coco")
    shutil.rmtree(folder / "val")
    with pytest.raises(InputError, match=r"instances_val\.json"):
        distilled(folder, tmp_path / "out", **{"method.name": "supervised"})
    assert not (tmp_path / "out").exists()
