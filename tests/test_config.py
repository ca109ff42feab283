"""Precedence, YAML, messages and identity of the configuration."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from kdcli.config import Section, beneath, identity, leaves, option, origins, resolve
from kdcli.errors import UsageError
from kdcli.sections import RunSection
from kdcli.stages import distill, evaluate, probe

STAGES = (probe.Config, distill.Config, evaluate.Config)


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def refusal(kind: Any = distill.Config, **given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(kind, **given)
    return str(caught.value)


def test_each_layer_overrides_the_one_below(tmp_path: Path) -> None:
    file = written(tmp_path, "optim:\n  lr: 3\n")
    layers: list[dict[str, Any]] = [
        {},
        {"file": file},
        {"sets": ["optim.lr=4"]},
        {"options": {"optim.lr": "5"}},
    ]
    given: dict[str, Any] = {}
    found = []
    for layer in layers:
        given |= layer
        found.append(resolve(distill.Config, **given).optim.lr)
    assert found == [5e-4, 3, 4, 5]


def test_the_last_set_of_a_key_holds() -> None:
    assert resolve(distill.Config, sets=["optim.lr=1", "optim.lr=2"]).optim.lr == 2


def test_nested_dotted_and_bare_values_in_yaml(tmp_path: Path) -> None:
    text = "data: cars/\nmethod: kd\nviews: 4\nteacher: runs/t\noptim:\n  epochs: 2\n  betas: [0.9, 0.95]\n"
    config = resolve(distill.Config, file=written(tmp_path, text))
    assert (config.data.source, config.method.name, config.views.count) == ("cars/", "kd", "4")
    assert (config.teacher, config.optim.epochs, config.optim.betas) == (["runs/t"], 2, (0.9, 0.95))
    assert resolve(distill.Config, file=written(tmp_path, "optim.lr: 0.25")).optim.lr == 0.25


def test_an_empty_file_and_an_empty_section_change_nothing(tmp_path: Path) -> None:
    assert resolve(distill.Config, file=written(tmp_path, "")) == distill.Config()
    assert resolve(distill.Config, file=written(tmp_path, "optim:\n  # lr: 1\ndata:\n")) == distill.Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E+2", 100), (".5", 0.5), ("2", 2), ("'3'", 3)],
)
def test_numbers_of_yaml(tmp_path: Path, text: str, value: float) -> None:
    assert resolve(distill.Config, file=written(tmp_path, f"optim:\n  lr: {text}\n")).optim.lr == value
    assert resolve(distill.Config, sets=[f"optim.lr={text}"]).optim.lr == value
    found = resolve(distill.Config, sets=[f"method.other={text.strip(chr(39))}"]).method.model_extra
    assert found == {"other": value}  # a method's parameter is a number before its type is known


def test_words_that_yaml_1_1_takes_for_something_else() -> None:
    config = resolve(distill.Config, sets=["precision=no", "out=2026-01-01", "data.train=on", "cache=010"])
    assert (config.precision, config.out) == ("no", "2026-01-01")
    assert (config.data.train, config.cache) == ("on", "010")
    assert resolve(distill.Config, sets=["overwrite=true", "data.group_by=null"]).overwrite is True


def test_lists_through_set() -> None:
    config = resolve(distill.Config, sets=["optim.milestones=[1, 2.5]", "data.extra=[a, b]"])
    assert (config.optim.milestones, config.data.extra) == ([1, 2.5], ["a", "b"])


def test_a_stages_default_of_a_section_survives_other_keys_of_it() -> None:
    assert resolve(probe.Config).views.count == "1"
    assert resolve(probe.Config, sets=["views.size=32"]).views.count == "1"
    assert resolve(probe.Config, options={"views.count": "3"}).views.count == "3"


def test_a_configuration_knows_where_the_user_wrote_each_value(tmp_path: Path) -> None:
    file = written(tmp_path, "data: cars/\noptim:\n  lr: 3\n  epochs: 2\n  opt: sgd\n")
    config = resolve(
        distill.Config,
        file=file,
        sets=["optim.epochs=3", " method =kd", "method.ce=1"],
        options={"optim.lr": "5", "processes": "2", "views.size": 32},
    )
    found = origins(config)
    assert found == {
        "data.source": str(file),
        "optim.opt": str(file),
        "optim.epochs": "--set",
        "method.name": "--set",
        "method.ce": "--set",
        "optim.lr": "--lr",
        "processes": "--num-processes",
        "views.size": "views.size",
    }
    assert origins(config.model_copy(update={"seed": 3})) == found
    assert origins(distill.Config()) == {}
    assert "written" not in json.dumps([config.model_dump(), identity(config)])
    assert config == resolve(distill.Config, options={**{k: reached(config, k) for k in found}})


def reached(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = getattr(config, part)
    return config


def test_what_lies_beneath_the_user_replaces_defaults_alone() -> None:
    config = resolve(distill.Config, sets=["optim.lr=1", "optim.momentum=0.9"])
    values = {"optim.lr": 2, "optim.momentum": 0.5, "optim.clip_grad": None, "method.beta": 3}
    found, held = beneath(config, values)
    assert held == {"optim.clip_grad": None, "method.beta": 3}
    assert (found.optim.lr, found.optim.momentum, found.optim.clip_grad) == (1, 0.9, None)
    assert found.method.model_extra == {"beta": 3}
    assert (config.optim.clip_grad, config.method.model_extra) == (1.0, {})
    assert origins(found) == origins(config)
    assert beneath(found, values)[0] == found
    with pytest.raises(UsageError, match=r"unknown key 'optim\.clip'\. Did you mean 'optim\.clip_grad'"):
        beneath(config, {"optim.clip": None})
    with pytest.raises(UsageError, match=r"optim\.epochs: input should be greater than 0, got -1"):
        beneath(config, {"optim.epochs": -1})


@pytest.mark.parametrize("kind", STAGES)
def test_a_resolved_configuration_is_a_legal_file(tmp_path: Path, kind: Any) -> None:
    sets = ["data.source=cars/", "seed=7", "data.labels_per_class=3", "track=[tensorboard]"]
    sets += ["method=kd", "method.ce=0.5"] if kind is distill.Config else []
    config = resolve(kind, sets=sets)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.model_dump(mode="json", exclude={"overwrite"}), indent=1))
    assert resolve(kind, file=file) == config


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        ("optin.lr=1", "unknown key 'optin'. Did you mean 'optim.lr'?"),
        ("techer=a", "unknown key 'techer'. Did you mean 'teacher'?"),
        ("optim.lr.x=1", "unknown key 'optim.lr.x'. Did you mean 'optim.lr'?"),
        ("method.a.b=1", "unknown key 'method.a'."),
        ("foo", "--set takes KEY=VALUE, got 'foo'."),
        ("optim=3", "'optim' is a group of keys, not a value."),
    ],
)
def test_unknown_keys_of_set(key: str, message: str) -> None:
    assert refusal(sets=[key]).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  epoch: 3\n", r"unknown key 'optim.epoch'. Did you mean 'optim.epochs'?"),
        ("dta: cars/\n", r"unknown key 'dta'. Did you mean 'data'?"),
        ("optim: 3\n", "'optim' is a group of keys, not a value."),
        ("- a\n- b\n", "must hold keys and values, not list."),
        ("a: [\n", "is not valid YAML:"),
        ("a: !!python/object/apply:os.system [touch x]\n", "is not valid YAML:"),
    ],
)
def test_faults_of_a_file(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(file=written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert f"cannot read --config {tmp_path / 'none.yaml'}" in refusal(file=tmp_path / "none.yaml")


def test_a_wrong_value_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    assert refusal(options={"optim.lr": "fast"}) == (
        "--lr: input should be a valid number, unable to parse string as a number, got 'fast'."
    )
    assert refusal(sets=["optim.lr=fast"]).startswith("--set optim.lr: input should be a valid number")
    file = written(tmp_path, "optim:\n  lr: fast\n")
    assert refusal(file=file).startswith(f"{file}: optim.lr: input should be a valid number")
    assert refusal(options={"processes": "0"}).startswith("--num-processes: input should be greater than")
    assert refusal(sets=["optim.milestones=[1, x]"]).startswith("--set optim.milestones: input should be")
    assert refusal(options={"precision": "fp61"}).endswith("got 'fp61'. Did you mean 'fp16'?")
    assert refusal(sets=["data.split_seed=1.5"]).startswith(
        "--set data.split_seed: input should be a valid int"
    )


def test_a_required_field() -> None:
    class Needy(Section):
        name: str = option(..., "A name.", "--name")

    assert refusal(Needy) == "name is required."


@pytest.mark.parametrize("kind", STAGES)
def test_identity_leaves_out_runtime_fields_and_keeps_the_others(kind: Any) -> None:
    flat = {dotted: extra["runtime"] for dotted, _, extra in leaves(kind)}
    found = identity(kind())
    for dotted, runtime in flat.items():
        inner: Any = found
        for part in dotted.split("."):
            inner = inner.get(part, "absent") if isinstance(inner, dict) else inner
        assert (inner == "absent") is runtime, dotted
    assert {"out", "workers", "device", "track", "processes"} <= {n for n, runtime in flat.items() if runtime}


def test_identity_keeps_a_methods_parameters() -> None:
    config = resolve(distill.Config, sets=["method=kd", "method.ce=0.5", "workers=3"])
    assert identity(config)["method"] == {"name": "kd", "alpha": None, "temperature": None, "ce": 0.5}


def test_resolve_is_pure(tmp_path: Path) -> None:
    file = written(tmp_path, "optim:\n  milestones: [1]\n")
    given: dict[str, Any] = {
        "file": file,
        "sets": ["data.extra=[a]"],
        "options": {"track": ["tensorboard"]},
    }
    before = copy.deepcopy(given)
    first = resolve(distill.Config, **given)
    again = first.model_dump()
    first.optim.milestones.append(9.0)
    first.data.extra.append("z")
    first.track.append("wandb")
    assert given == before
    assert resolve(distill.Config, **given).model_dump() == again
    assert resolve(distill.Config).data.extra == []
    assert resolve(RunSection).track == []
