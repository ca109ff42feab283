"""Published trainings: each is legal and says where it is from; what a run takes of it, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toolbox import QUIET, facts, rows

from kdcli import methods
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.engine.optim import known_optimizer
from kdcli.errors import UsageError
from kdcli.stages import distill
from kdcli.words import Recipe
from kdcli.words.recipes import as_yaml

RECIPES = [(name, recipe) for name in methods.METHODS for recipe in methods.recipes(name)]
each_recipe = pytest.mark.parametrize(
    ("name", "recipe"), RECIPES, ids=[f"{name}, {recipe.name}" for name, recipe in RECIPES]
)
# what toys of 32 pixels and few pictures need of these methods whatever their recipe says
SMALL = {
    "hint": {"method.match": "pool"},
    "fitnets": {"method.match": "pool"},
    "sequential": {"method.generations": 1},
    "ft": {"method.student": "stage2", "method.teacher": "stage2"},
    "crd": {"method.negatives": 16},
    "seed": {"method.queue": 64},
    "mae": {"method.decoder": "absent", "method.decoder_depth": "absent"},
    "g2sd-generic": {"method.decoder_depth": "absent", "method.teacher_block": 2},
}


@pytest.fixture
def plan(options_of, tmp_path):
    def make(name, file=None, sets=(), **more):
        shares = ("method.hint_share", "method.head_share", "method.boundary_share")
        given = dict.fromkeys(("optim.batch_size", *shares), "absent")
        options = options_of(name, tmp_path, **{**given, **SMALL.get(name, {}), **more})
        return distill.plan(resolve(distill.Config, options=options, file=file, sets=sets), QUIET)

    return make


# -- as data -------------------------------------------------------------------------------------------------


@each_recipe
def test_its_settings_are_legal(name: str, recipe: Recipe) -> None:
    config = resolve(distill.Config, options={"method.name": name, **recipe.settings})
    known = {"optim", "views", "method", "teacher_temperature"}
    assert {key.partition(".")[0] for key in recipe.settings} <= known
    given = config.method.model_dump(exclude={"name"}, exclude_none=True)
    assert methods.arguments(name, given).keys() >= given.keys()
    known_optimizer(config.optim.opt)
    assert config.optim.milestones == sorted(config.optim.milestones)
    assert all(epoch < config.optim.epochs for epoch in config.optim.milestones)


@each_recipe
def test_every_value_says_where_it_is_from(name: str, recipe: Recipe) -> None:
    assert recipe.source
    assert set(recipe.notes) <= set(recipe.settings), "a note of a key that it does not set"
    assert all(recipe.source_of(key).startswith(recipe.source) for key in recipe.settings)


@each_recipe
def test_what_the_default_would_add_in_silence_is_said(name: str, recipe: Recipe) -> None:
    """AdamW's defaults: warm-up, cosine, clipping, fixed views. A recipe with an optimiser sets them all."""
    if "optim.opt" not in recipe.settings:
        assert recipe.unknown
        return
    clipped = 0.1 if name == "detrdistill-logits" else None
    assert recipe.settings["optim.clip_grad"] == clipped, "no reference code clips but those of DETRs"
    assert {"optim.warmup", "optim.schedule", "views.count", "views.scale", "views.hflip"} <= set(
        recipe.settings
    )
    if recipe.source != "from memory":
        wanted = {"optim.lr", "optim.batch_size", "optim.weight_decay"}
        assert wanted <= set(recipe.settings)
        assert {"optim.epochs", "optim.max_steps"} & set(recipe.settings)


def test_names_tell_the_recipes_of_a_method_apart() -> None:
    found = {name: [recipe.name for recipe in methods.recipes(name)] for name in methods.METHODS}
    assert all(len(set(names)) == len(names) and "default" not in names for names in found.values())
    without = {name for name, names in found.items() if not names}
    unread = {"kd-pt", "kd-sim", "kd-topk", "darkrank", "generic", "radio", "clip-kd"}
    assert without == {"self", "ensemble"} | unread, "what papers or code say could be read"
    assert "paper" not in [name for names in found.values() for name in names[1:]]


def settings(name: str, recipe: str) -> dict[str, Any]:
    return dict(next(r.settings for r in methods.recipes(name) if r.name == recipe))


def test_facts_of_reference_codes() -> None:
    """What was read in them; timm's ``sgd`` is Nesterov's, ``momentum`` plain."""
    kd, large = settings("kd", "cifar-100"), settings("kd", "imagenet")
    keys = [f"optim.{key}" for key in ("opt", "lr", "weight_decay", "milestones", "epochs", "batch_size")]
    assert [kd[key] for key in keys] == ["momentum", 0.05, 5e-4, [150, 180, 210], 240, 64]
    assert [large[key] for key in keys] == ["momentum", 0.2, 1e-4, [30, 60, 90], 100, 512]
    assert [large[f"method.{key}"] for key in ("ce", "kd", "temperature")] == [0.5, 0.5, 1]
    assert settings("hint", "cifar-100")["method.student"] == "stage2"
    assert settings("at", "cifar-100")["method.student"] == ["stage1", "stage2", "stage3", "stage4"]
    assert settings("nst", "cifar-100")["method.teacher"] == ["stage1", "stage2", "stage3", "stage4"]
    assert (settings("one", "cifar-100")["optim.opt"], settings("okddip", "cifar-100")["optim.opt"]) == (
        "momentum",
        "sgd",
    )
    assert settings("byot", "cifar-100")["optim.milestones"] == [250 // 3, 500 // 3, 240]
    for name in ("ft", "ab"):  # two phases: the rate drops after epochs of the second
        found = settings(name, "cifar-100")
        assert (found["optim.epochs"], found["optim.milestones"]) == (30 + 240, [150, 180, 210])
    crd = settings("crd", "cifar-100")
    keys = [f"method.{key}" for key in ("weight", "ce", "kd", "width", "negatives", "nce_temperature")]
    assert [crd[key] for key in (*keys, "method.momentum")] == [0.8, 1, 0, 128, 16384, 0.07, 0.5]
    sskd = settings("sskd", "cifar-100")
    assert (sskd["views.hflip"], sskd["method.head_drops"]) == (0, [30 / 60, 45 / 60])
    assert settings("at", "cifar-10")["method.student"] == ["stage2", "stage3", "stage4"], "a WRN has three"
    assert settings("tf-kd-self", "cifar-100-densenet121")["optim.lr"] == pytest.approx(0.1 * 100 / 128)


@pytest.mark.parametrize(
    ("recipe", "beta", "temperature", "warmup"),
    [
        ("cifar-100", 8, 4, 20 / 240),
        ("cifar-100-vgg13", 6, 4, 20 / 240),
        ("cifar-100-wrn", 6, 4, 20 / 240),
        ("cifar-100-resnet56", 2, 4, 20 / 240),
        ("imagenet", 0.5, 1, 1 / 100),
        ("imagenet-mobilenetv1", 2, 1, 1 / 100),
    ],
)
def test_dkd_has_a_recipe_for_each_beta(recipe: str, beta: float, temperature: float, warmup: float) -> None:
    """The authors' configurations have one β for each pair of networks, and T 1 on ImageNet."""
    found = settings("dkd", recipe)
    keys = [f"method.{key}" for key in ("ce", "alpha", "beta", "temperature", "warmup")]
    assert [found[key] for key in keys] == [1, 1, beta, temperature, warmup]
    training = settings("kd", "cifar-100" if recipe.startswith("cifar") else "imagenet")
    assert all(found[key] == value for key, value in training.items() if not key.startswith("method."))


@pytest.mark.parametrize(
    ("recipe", "one_hot", "entropy", "activation", "latent", "generator_lr", "steps"),
    [
        ("cifar-10", 0.05, 5, 0.01, 1000, 0.02, 240_000),
        ("cifar-100", 0.5, 20, 0.1, 1000, 0.02, 240_000),
        ("mnist", 1, 5, 0.1, 100, 0.2, 24_000),
    ],
)
def test_dafl_as_its_readme_has_it(
    recipe: str,
    one_hot: float,
    entropy: float,
    activation: float,
    latent: int,
    generator_lr: float,
    steps: int,
) -> None:
    found = settings("dafl", recipe)
    weights = [f"method.{key}" for key in ("one_hot", "entropy", "activation", "latent", "generator_lr")]
    assert [found[key] for key in weights] == [one_hot, entropy, activation, latent, generator_lr]
    if recipe == "mnist":
        assert (found["optim.max_steps"], found["optim.opt"], found["optim.lr"]) == (steps, "adam", 2e-3)
        return
    per_epoch = 50_000 / found["optim.batch_size"]
    assert found["optim.epochs"] * per_epoch == pytest.approx(steps, rel=1e-3)
    drops = [milestone * per_epoch for milestone in found["optim.milestones"]]
    assert drops == pytest.approx([800 * 120, 1600 * 120], rel=1e-3)


def test_reference_codes_decay_biases_and_norms_too() -> None:
    """They hand all parameters to one group of torch's SGD; Caffe's and TensorFlow's do not."""
    for name, recipe in RECIPES:
        if recipe.settings.get("optim.opt") in ("momentum", "sgd") and recipe.source != "from memory":
            assert recipe.settings["optim.decay_all"] is True, (name, recipe.name)


def test_the_help_of_a_method_lists_its_recipes() -> None:
    said, nothing = methods.describe("kd"), " ".join(methods.describe("task-specific").split())
    assert "Recipe cifar-100 (--recipe paper), from RepDistiller train_student.py:" in said
    assert "Recipe imagenet (--recipe imagenet), from mdistiller configs/imagenet/r34_r18/kd.yaml:" in said
    assert "(0.01 for MobileNetV2," in said
    assert "clip_grad null (nothing is clipped)" in " ".join(said.split())
    assert "* left out: random crops after padding by 4 pixels" in said
    assert "no published training of it is known here" in methods.describe("self")
    assert "not published in what could be read: α and T" in nothing


# -- what a run takes of it ----------------------------------------------------------------------------------


def test_every_layer_holds_over_the_one_below(plan, tmp_path) -> None:
    """Default < recipe < YAML < --set < option, as the plan has them and as it says."""
    file = tmp_path / "cars.yaml"
    file.write_text("optim:\n  decay_rate: 0.3\n  momentum: 0.7\n  lr: 0.7\n")
    sets = ["optim.momentum=0.8", "optim.lr=0.8", "method.ce=0.8"]
    made = plan("kd", file=file, sets=sets, recipe="paper", **{"optim.lr": "0.9", "optim.batch_size": 8})
    optim = made.config.optim
    assert optim.ema == 0.0
    assert (optim.weight_decay, optim.clip_grad, optim.schedule) == (5e-4, None, "multistep")
    assert (optim.decay_rate, optim.momentum, optim.lr) == (0.3, 0.8, 0.9)
    assert (made.arguments["ce"], made.arguments["kd"]) == (0.8, 0.9)
    assert [term.weight for term in made.method.turns[0].terms] == [0.8, 0.9]
    origin = {row["key"]: row["from"] for row in made.to_json()["settings"]}
    assert "optim.ema" not in origin
    assert origin["optim.weight_decay"] == "recipe paper: RepDistiller train_student.py"
    assert origin["optim.clip_grad"].endswith("train_student.py; nothing is clipped")
    assert origin["optim.decay_rate"] == f"{file} (in the recipe 0.1)"
    assert origin["optim.momentum"] == "--set (in the recipe 0.9)"
    assert origin["optim.lr"] == "--lr (in the recipe 0.05)"
    assert origin["method.ce"] == "--set (in the recipe 0.1)"
    assert made.recipe.applied.keys().isdisjoint({"optim.decay_rate", "optim.momentum", "optim.lr"})


@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(*made, id=f"{made[0]}, {made[1].name}") for made in RECIPES],
)
def test_a_plan_takes_all_of_it_and_shows_all_of_it(name: str, recipe: Recipe, plan) -> None:
    made = plan(name, recipe=recipe.name, **{"optim.batch_size": 8})
    given = {key for key, value in SMALL.get(name, {}).items() if value != "absent"}
    own = {"optim.batch_size", "optim.max_steps", *given}
    assert made.recipe.applied == {key: v for key, v in recipe.settings.items() if key not in own}
    shown = {row["key"]: row for row in made.to_json()["settings"]}
    for key in recipe.settings:
        wanted = "(in the recipe" if key in own else f"recipe {recipe.name}: {recipe.source}"
        assert wanted in shown[key]["from"]
    assert {key: shown[key]["value"] for key in made.recipe.applied} == {
        key: as_yaml(value) for key, value in made.recipe.applied.items()
    }
    assert len(shown) < 40


def test_a_recipe_reaches_task_and_method(plan) -> None:
    """Label smoothing is the task's, and what learns with what is the method's: both are made anew."""
    made = plan("dml", recipe="market-1501")
    assert [turn.name for turn in made.method.turns] == ["student", "peer2"]
    assert made.method.turns[0].terms[0].keywords == {"label_smoothing": 0.1}
    assert made.config.optim.max_steps == 4  # the test's own option
    large = plan("kd", recipe="imagenet")
    assert [(term.weight, term.keywords) for term in large.method.turns[0].terms] == [
        (0.5, {}),
        (0.5, {"temperature": 1.0, "t_squared": True}),
    ]
    assert large.config.views.scale == (0.08, 1.0)


def test_default_runs_have_none(plan) -> None:
    made = plan("kd")
    assert made.config.optim == resolve(distill.Config, options={"optim.max_steps": 4}).optim
    assert made.to_json()["recipe"] == {"name": "default", "applied": {}}
    shown = {row["key"]: (row["value"], row["from"]) for row in made.to_json()["settings"]}
    assert shown == {"method.name": ("kd", "--method"), "optim.max_steps": ("4", "--max-steps")}
    optim = made.config.optim.model_copy(update={"ema": 0.5})
    again = distill.plan(made.config.model_copy(update={"optim": optim}), QUIET)
    assert {"key": "optim.ema", "value": "0.5", "from": "given"} in again.to_json()["settings"]


def test_the_dry_run_says_what_is_from_where(plan, capsys) -> None:
    made = plan("byot", recipe="paper")
    made.describe(Console())
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    table = lines[lines.index(["settings"]) :]
    assert table[1] == ["key", "value", "from"]
    assert ["optim.lr", "0.1", "recipe", "paper:", "the", "authors'", "train.py"] in table
    assert ["optim.milestones", "[83,", "166,", "240]"] in [line[:4] for line in table]
    said = " ".join(" ".join(line) for line in table)
    assert "also has AutoAugment's policy for CIFAR-10; Cutout of 16 pixels; random crops" in said
    assert "kdcli does not do that" in said
    assert len(table) < 40
    plan("task-specific", recipe="paper").describe(Console())
    assert "not published in what could be read: α and T, optimiser" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        (
            "kd",
            "papr",
            r"method kd has no 'papr'\. Did you mean 'paper'\? It has: paper \(cifar-100\), imagenet",
        ),
        ("kd", "cifar-10", r"has no 'cifar-10'\. Did you mean 'cifar-100'\?"),
        ("kd", "", "has no ''"),
        (
            "self",
            "paper",
            "--recipe paper: method self has no recipe, as no published training of it is known",
        ),
    ],
)
def test_recipes_that_there_are_not_are_refused(name, recipe, message, plan) -> None:
    with pytest.raises(UsageError, match=message):
        plan(name, recipe=recipe)


def test_drops_behind_the_end_of_a_run_are_warned_of(plan, warnings) -> None:
    plan("kd", recipe="paper", **{"optim.max_steps": "absent", "optim.epochs": 200, "optim.batch_size": 8})
    assert [text for text in warnings if "milestones" in text] == [
        "optim.milestones: the learning rate is to drop after epoch 210, and the training ends after 200."
    ]
    warnings.clear()
    plan("kd", recipe="paper", **{"optim.max_steps": "absent"})
    assert not any("milestones" in text for text in warnings)


@pytest.mark.parametrize("name", ["supervised", "dkd", "at", "byot", "sskd"])
def test_a_run_by_the_paper_and_again_from_its_manifest(name, plan, tmp_path) -> None:
    """What its manifest holds of the configuration gives the same run, in which all is the user's."""
    more = {"optim.batch_size": 8, "method.head_share": 0.5} if name == "sskd" else {"optim.batch_size": 8}
    made = plan(name, recipe="paper", **more)
    first = distill.run(made, QUIET).path
    kept = facts(first)
    assert kept["recipe"]["name"] == "cifar-100"
    assert kept["recipe"]["applied"]["optim.clip_grad"] is None
    assert kept["config"]["recipe"] == "paper"
    assert kept["config"]["optim"]["opt"] == "momentum"
    assert kept["lr"] == made.config.optim.lr
    assert "written" not in json.dumps(kept["config"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(kept["config"]))
    again = distill.plan(resolve(distill.Config, file=file, options={"out": str(tmp_path / "again")}), QUIET)
    assert again.target.identity == made.target.identity
    assert again.recipe.applied == {}
    second = distill.run(again, QUIET).path
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert facts(second)["config"]["optim"] == kept["config"]["optim"]


def test_no_step_is_clipped(plan, tmp_path) -> None:
    """At a rate of 1 the first step is as long as the gradient, and with clipping no longer than 1."""
    common = {"optim.batch_size": 8, "optim.lr": 1.0, "optim.max_steps": 1, "optim.milestones": []}
    free = distill.run(plan("rkd", recipe="paper", **common, out=str(tmp_path / "free")), QUIET).path
    (row,) = [row for row in rows(free) if "loss" in row]
    assert row["grad_norm"] > 1
    clipped = plan("rkd", recipe="paper", **common, **{"optim.clip_grad": 1.0}, out=str(tmp_path / "clipped"))
    path = distill.run(clipped, QUIET).path
    assert (path / "model.safetensors").read_bytes() != (free / "model.safetensors").read_bytes()


def test_every_link_of_a_chain_takes_the_recipe(plan, tmp_path) -> None:
    made = plan("kd", recipe="paper", via=["test_resnet"], **{"optim.batch_size": 8, "optim.max_steps": 2})
    out = distill.run(made, QUIET).path
    for path in (out, Path(f"{out}-via-1")):
        assert facts(path)["config"]["optim"]["opt"] == "momentum"
        assert facts(path)["recipe"]["applied"]["optim.lr"] == 0.05


def test_the_head_of_sskd_has_drops_of_its_own(plan) -> None:
    """The released student.py: SGD without Nesterov, one group, a tenth of the rate at 30 and 45 of 60."""
    wanted = {
        "opt": "momentum",
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "decay_all": True,
        "schedule": "multistep",
        "warmup": 0.0,
        "milestones": [],
        "drops": [30 / 60, 45 / 60],
        "decay_rate": 0.1,
    }
    for options in ({}, {"recipe": "paper"}):
        assert plan("sskd", **options).method.turns[0].optim == wanted


# -- parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.METHODS)
def test_no_parameter_is_declared_twice(name: str) -> None:
    row = methods.entry(name)
    declared = list(methods._keywords(methods._load(row.target)))
    for part in row.parts:
        declared += methods._of_part(methods._load(part))
    assert len(declared) == len(set(declared))
    assert list(methods.parameters(name)) == declared


@pytest.mark.parametrize("name", methods.ADDITIONS)
def test_a_term_is_one_alone_and_in_its_method(name: str) -> None:
    """``--add`` weighs by its number; without one by 1, whatever the method's own weight."""
    known = methods.parameters(name)
    by_one = ("hint", "at", "nst", "sp", "cc", "pkt", "cwd", "cwd-features", "detrdistill-logits")
    assert ("weight" in known) == (name in by_one)
    own = methods._keywords(methods._load(methods.ADDITIONS[name]))
    assert {key: known[key].default for key in own if key != "name"} == {
        key: parameter.default for key, parameter in own.items() if key != "name"
    }
    term = methods.addition(name).terms[0]
    assert term.weight == {"rkd": 25}.get(name, 1)
    assert methods.addition(f"{name}=3").terms[0].weight == 3 * term.weight


def test_which_methods_fit_a_task() -> None:
    fitting = {
        provides: {name for name, row in methods.METHODS.items() if methods.fits(row.needs, provides)}
        for provides in (
            (),
            ("pixel",),
            ("picture",),
            ("picture", "class"),
            ("object",),
            ("features",),
            ("text",),
        )
    }
    assert fitting[()] == {"supervised", "kd", "task-specific"}
    assert fitting[("pixel",)] - fitting[()] == {"cwd"}
    detectors = {"cwd-features", "detrdistill-logits", "g2sd-detection"}
    assert fitting[("object",)] - fitting[()] == detectors
    assert fitting[("picture",)] - fitting[()] == {
        *("eskd", "sequential", "self", "ensemble"),
        *("hint", "at", "nst", "rkd", "sp", "cc", "pkt", "darkrank", "vid", "mgd", "ft", "ab"),
    }
    alone = {"mae", "g2sd-generic", "generic", "radio", "proteus", "seed"}
    assert fitting[("features",)] == alone, "what learns from labels or answers has nothing to learn by"
    texts = {"vlm-ood", "clip-kd"}
    assert fitting[("text",)] - fitting[()] == texts
    assert fitting[("picture", "class")] == set(methods.METHODS) - alone - detectors - texts - {"cwd"}


def test_reference_codes_have_raw_logits_where_there_is_a_teacher() -> None:
    """Those of task-specific distillation are not published: it keeps what probe fitted."""
    for name, entry in methods.METHODS.items():
        for recipe in methods.recipes(name):
            raw = recipe.settings.get("teacher_temperature")
            answers = entry.teacher and entry.needs != "features"
            assert raw == ("raw" if answers and name != "task-specific" else None), (name, recipe.name)


def test_a_recipe_with_raw_logits_is_heeded_beneath_the_user(plan) -> None:
    assert plan("kd", recipe="paper").config.teacher_temperature == "raw"
    made = plan("kd", recipe="paper", sets=["teacher_temperature=fit"])
    assert made.config.teacher_temperature == "fit"
    shown = {row["key"]: row["from"] for row in made.to_json()["settings"]}
    assert shown["teacher_temperature"] == "--set (in the recipe raw)"
