"""Every method in process on real small pictures: it trains what it should, leaves the rest, and resumes."""

import pytest
from toolbox import QUIET, facts, rows

from kdcli import methods
from kdcli.config import resolve
from kdcli.stages import distill

SMALL = {
    "hint": {"method.match": "pool"},
    "fitnets": {"method.match": "pool", "method.hint_share": 0.5},
    "sskd": {"method.head_share": 0.5},
    "eskd": {"method.stop": 0.5},
}
WITHOUT_TEACHER = [name for name, row in methods.METHODS.items() if not row.teacher]


@pytest.fixture
def plan(pictures, probed, tmp_path):
    def make(name, **more):
        options = {
            "student": "test_resnet",
            "from_scratch": True,
            "image_size": 32,
            "data.source": str(pictures),
            "optim.max_steps": 4,
            "optim.batch_size": 8,
            "log_every": 1,
            "method.name": name,
            "out": str(tmp_path / "out"),
            "cache": str(tmp_path / "cache"),
            **({"teacher": str(probed("test_resnet"))} if methods.METHODS[name].teacher else {}),
            **SMALL.get(name, {}),
            **more,
        }
        return distill.plan(
            resolve(distill.Config, options={k: v for k, v in options.items() if v != "absent"}), QUIET
        )

    return make


@pytest.mark.parametrize("name", methods.METHODS)
def test_end_to_end(name, plan):
    made = plan(name)
    out = distill.run(made, QUIET).path
    assert facts(out)["method"]["name"] == name
    logged = [row for row in rows(out) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    names = {term.name for turn in made.method.turns for term in turn.terms}
    several = len(made.method.turns) > 1
    assert names <= {key.rpartition("/")[2] if several else key for row in logged for key in row}
