"""What was given and would not be heeded is refused by name; what a manifest says by default is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from toolbox import QUIET

from kdcli.config import asked, resolve
from kdcli.errors import UsageError
from kdcli.runs import idle
from kdcli.runs.material import planned_steps
from kdcli.sections import OptimSection
from kdcli.stages import distill, evaluate, probe, synthesize
from kdcli.studies import chains


def of_distill(config: Any) -> list[idle.Rule]:
    """What is refused at once, and what once the recipe is beneath."""
    return [*idle.of_distill(config), *idle.of_training(config.optim, config.views)]


STAGES: dict[str, tuple[Any, Any]] = {
    "probe": (probe.Config, idle.of_probe),
    "distill": (distill.Config, of_distill),
    "eval": (evaluate.Config, idle.of_eval),
    "synthesize": (synthesize.Config, idle.of_synthesize),
}


@pytest.mark.parametrize(
    ("stage", "sets", "message"),
    [
        (
            "probe",
            "protocol=dinov2 grid.patience=3",
            "grid.patience is given, and --protocol dinov2 trains every",
        ),
        (
            "probe",
            "protocol=dinov2 grid.l2=[0.1]",
            "grid.l2 is given, and --protocol dinov2 trains by SGD alone",
        ),
        (
            "probe",
            "protocol=dinov2 grid.solver=both",
            "grid.solver is given, and --protocol dinov2 trains by SGD",
        ),
        ("probe", "protocol=dinov2 views=3", "views.count is given, and --protocol dinov2 sees a new view"),
        ("probe", "protocol=dinov2 views.store=fp32", "views.store is given, and --protocol dinov2"),
        (
            "probe",
            "grid.solver=lbfgs grid.epochs=3",
            "grid.epochs is given, and grid.solver=lbfgs has no such",
        ),
        ("probe", "grid.solver=lbfgs grid.lr=[1]", "grid.lr is given, and grid.solver=lbfgs"),
        ("probe", "grid.solver=sgd grid.l2=[1]", "grid.l2 is given, and grid.solver=sgd has no L-BFGS path"),
        ("probe", "head=keep features=pooled", "features is given, and --head keep fits no head"),
        ("probe", "head=keep views.hflip=0", "views.hflip is given, and --head keep fits no head"),
        ("probe", "optim.lr=1", "optim.lr is given, and only --finetune trains by it"),
        (
            "probe",
            "finetune=true optim.milestones=[3]",
            "optim.milestones is given, and optim.schedule=cosine has",
        ),
        ("probe", "views.scale=[0.5,1]", "views.scale is given, and one view is the un-augmented one"),
        ("probe", "statistics.taps=[logits]", "statistics.taps is given, and only --statistics records"),
        ("probe", "data.class_order=same", "data.class_order is given, and a head that is fitted"),
        ("probe", "data.class_balance=sampler", "data.class_balance is given, and heads are fitted on all"),
        ("probe", "track=[wandb]", "track is given, and only distill writes to trackers"),
        ("distill", "optim.milestones=[1]", "optim.milestones is given, and optim.schedule=cosine has none"),
        ("distill", "optim.schedule=step optim.min_lr=0.1", "optim.min_lr is given, and optim.schedule=step"),
        ("distill", "optim.decay_rate=0.3", "optim.decay_rate is given, and optim.schedule=cosine"),
        ("distill", "optim.schedule=multistep optim.decay_epochs=3", "optim.decay_epochs is given"),
        (
            "distill",
            "teacher=[a] teacher_mean=logits",
            "teacher_mean is given, and there is one teacher at most",
        ),
        ("distill", "from_scratch=true weights=a", "weights is given, and --from-scratch begins with random"),
        ("distill", "views.scale=[1,1] views.ratio=[1,2]", "views.ratio is given, and"),
        ("distill", "views.fit=squash", "views.fit is given, and views.scale cuts parts of a picture"),
        (
            "distill",
            "data.max_bad_fraction=0.2",
            "data.max_bad_fraction is given, and pictures are left out by",
        ),
        ("eval", "cost=false repeats=5", "repeats is given, and --no-cost measures no time"),
        ("eval", "data.labels_per_class=3", "data.labels_per_class is given, and labels are hidden in the"),
        ("eval", "data.class_balance=loss", "data.class_balance is given, and nothing is trained here"),
        ("synthesize", "merge=[a,b] mixer=cutmix", "mixer is given, and --merge joins what is made"),
        ("synthesize", "merge=[a,b] sampling.steps=3", "sampling.steps is given, and --merge joins"),
    ],
)
def test_what_is_idle_is_refused(stage: str, sets: str, message: str) -> None:
    kind, rules = STAGES[stage]
    config = resolve(kind, sets=sets.split())
    with pytest.raises(UsageError) as caught:
        idle.refuse_idle(config, rules(config))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("stage", "sets"),
    [
        ("probe", "protocol=dinov2 grid.solver=sgd views.hflip=0 grid.lr=[1]"),
        ("probe", "views=2 views.hflip=0 grid.patience=3 grid.l2=[1]"),
        ("probe", "finetune=true optim.lr=1 views.hflip=0 data.class_balance=sampler"),
        ("distill", "optim.schedule=multistep optim.milestones=[1] optim.decay_rate=0.5"),
        ("distill", "optim.schedule=poly optim.min_lr=0.1 optim.decay_rate=2"),
        ("distill", "teacher=[a,b] teacher_mean=probabilities"),
        ("eval", "split=train data.labels_per_class=3 repeats=4"),
        ("synthesize", "merge=[a,b] out=c threads=1"),
    ],
)
def test_what_is_heeded_is_not(stage: str, sets: str) -> None:
    kind, rules = STAGES[stage]
    config = resolve(kind, sets=sets.split())
    idle.refuse_idle(config, rules(config))


@pytest.mark.parametrize("stage", STAGES)
def test_a_manifests_configuration_asks_for_nothing_by_its_defaults(stage: str, tmp_path: Path) -> None:
    kind, rules = STAGES[stage]
    sets = {"probe": ["protocol=dinov2"], "synthesize": ["merge=[a,b]"]}.get(stage, [])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(resolve(kind, sets=sets).model_dump(mode="json")))
    config = resolve(kind, file=tmp_path / "run.yaml")
    idle.refuse_idle(config, rules(config))
    assert not asked(config, "seed")
    assert asked(resolve(kind, sets=["seed=0"]), "seed")
    assert asked(resolve(kind, options={"seed": "0"}), "seed")
    assert asked(resolve(kind, file=tmp_path / "run.yaml", options={"seed": 1}), "seed")


def test_an_option_is_called_as_it_was_written() -> None:
    config = resolve(probe.Config, options={"grid.epochs": "3", "grid.solver": "lbfgs"})
    with pytest.raises(UsageError, match=r"^--epochs is given, and grid\.solver=lbfgs"):
        idle.refuse_idle(config, idle.of_probe(config))


# -- parameters of methods -----------------------------------------------------------------------------------


@pytest.fixture
def plan(pictures: Path, teacher: Path, tmp_path: Path) -> Any:
    def make(*sets: str, **more: Any) -> Any:
        options = {
            "student": "test_vit",
            "from_scratch": True,
            "image_size": 32,
            "data.source": str(pictures),
            "optim.max_steps": 2,
            "optim.batch_size": 8,
            "out": str(tmp_path / "out"),
            "cache": str(tmp_path / "cache"),
            "teacher": str(teacher),
            **more,
        }
        given = {key: value for key, value in options.items() if value is not None}
        return distill.plan(resolve(distill.Config, sets=sets, options=given), QUIET)

    return make


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            "method=hint method.temperature=2",
            r"method\.temperature=2\.0 is given, and changes nothing in method hint",
        ),
        (
            "method=hint method.adapter=none method.relu=false",
            r"method\.relu=False is given, and changes nothing",
        ),
        ("method=hint method.adapter=linear method.match=pool", r"method\.match=pool is given, and changes"),
        (
            "method=kd method.kd=0 method.temperature=2",
            r"method\.temperature=2\.0 is given, and changes nothing",
        ),
        ("method=okddip method.layout=networks method.trunk=block-1", r"method\.trunk=block-1 is given, and"),
        ("method=kd optim.opt=adamw optim.momentum=0.5", r"optim\.momentum is given, and --opt adamw has no"),
        (
            "method=kd optim.opt=sgd optim.betas=[0.9,0.9]",
            r"turn student: optimiser sgd has no betas\. Set optim\.betas=null",
        ),
        (
            "method=kd optim.opt=adan optim.betas=[0.9,0.9]",
            r"turn student: optimiser adan takes 3 betas, and optim\.betas are 2",
        ),
        (
            "method=kd views=live views.store=fp32",
            r"views\.store is given, and no outputs of a teacher are kept",
        ),
        (
            "method=kd data.labelled_fraction=0.5",
            r"data\.labelled_fraction is given, and every picture to train",
        ),
    ],
)
def test_a_parameter_that_changes_nothing_is_refused(plan: Any, sets: str, message: str) -> None:
    needless = {"teacher": None} if "okddip" in sets else {}
    with pytest.raises(UsageError, match=rf"^{message}"):
        plan(*sets.split(), **needless)


@pytest.mark.parametrize(
    "sets",
    [
        "method=hint method.kd=0.5 method.temperature=2 method.match=pool",
        "method=kd method.ce=0 method.temperature=2",
        "method=kd method.temperature=4",
        "method=sequential method.generations=1",
        "optim.opt=momentum optim.momentum=0.5",
        "optim.betas=[0.8,0.9] views=1 views.store=fp32",
    ],
)
def test_a_parameter_that_changes_something_is_taken(plan: Any, sets: str) -> None:
    plan(*sets.split())


def test_the_mean_of_teachers_belongs_to_the_first_link_of_a_chain(
    plan: Any, probed: Any, tmp_path: Path
) -> None:
    teachers = [str(probed(name)) for name in ("test_vit", "test_resnet")]
    made = plan("teacher_mean=probabilities", "via=[test_vit]", teacher=teachers)
    link = chains._link(made.config, 1, ["a"])
    assert link.teacher_mean == "probabilities"
    idle.refuse_idle(link, idle.of_distill(link))


def test_a_training_without_end_is_refused() -> None:
    optim = OptimSection(epochs=1e6, batch_size=1)
    with pytest.raises(
        UsageError, match=r"optim\.epochs=1e\+06 takes 200,000,000 steps, more than 100,000,000"
    ):
        planned_steps(optim, 200)
    assert planned_steps(optim, 100) == 100_000_000


def test_a_tracker_that_there_is_not_is_refused_by_the_plan(plan: Any) -> None:
    with pytest.raises(UsageError, match=r"--track: no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        plan("track=[tensorbord]")


def test_what_takes_the_place_of_something_else_is_said(plan: Any, warnings: list[str]) -> None:
    plan("optim.epochs=3", "evaluate_every=2", "evaluate_steps=1")
    assert warnings == [
        "optim.epochs is given, and --max-steps says how long the training is.",
        "evaluate_every is given, and evaluate_steps stands in its place.",
    ]
