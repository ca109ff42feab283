import copy
import json
from html.parser import HTMLParser

import pytest
import torch

from kdcli.metrics.effects import effects
from kdcli.metrics.exits import early_exit_curve, exit_metrics
from kdcli.metrics.peers import peers
from kdcli.report import page as pages
from kdcli.report.forms import MISSING, amount, correlation, number, percent
from kdcli.report.page import to_json
from kdcli.tasks import figures
from kdcli.tasks.classification.report import confused_pairs, panels

EVIL = "<script>alert('x')</script>"


def table(report):
    return pages.table(report, figures())


def render(report):
    """The page of a report that does not say its task, as version 0.1 wrote them."""
    return pages.render(report, figures(), panels(report) if report["models"] else ())


def make_model(name, **more):
    return {
        "name": name,
        "path": f"runs/{name}",
        "metrics": {"top1": 0.8425, "mean_per_class": 0.8312, "nll": 0.51234, "ece": 0.0213},
        "reliability": {"confidence": [0.4, 0.9], "accuracy": [0.5, 0.8], "count": [4, 6]},
        "confusion": [[3, 1, 0], [0, 4, 0], [2, 0, 0]],
        "curves": [],
    } | more


COST = {
    "parameters": 3_412_000,
    "flops": 2_507_366_400,
    "latency_ms": {"median": 12.345, "p10": 11.0, "p90": 15.5, "repeats": 50},
    "throughput": {"median": 1234.5, "p10": 1100.0, "p90": 1300.0, "batch": 32},
    "peak_memory_mb": 45.67,
    "device": "cpu (2 cores)",
    "threads": 2,
}
TEACHER = {
    "name": "dinov2_vits",
    "agreement": 0.9,
    "kl": 0.1234,
    "both_right": 0.75,
    "only_student": 0.0925,
    "only_teacher": 0.0575,
    "neither_right": 0.1,
}


def make_report():
    full = make_model(
        "student",
        cost=COST,
        teacher=TEACHER,
        curves=[{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "val": 0.5}],
        selection="best on validation at step 400",
    )
    full["metrics"] = full["metrics"] | {"top5": 0.99}
    return {
        "title": "Two students",
        "created": "2026-11-21 09:30 UTC",
        "data": {
            "name": "pets",
            "split": "test",
            "samples": 12345,
            "classes": ["cat", "dog", "eel"],
            "fingerprint": "sha256:abc",
        },
        "models": [full, make_model("plain")],
        "notes": ["The test split was used once."],
    }


def add_sections(report):
    """Exits, effects and peers of random answers, as the metrics write them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    logits = torch.randn(30, 3, 3, generator=generator)
    each, together = exit_metrics(logits, y)
    times = {"median": 1.25, "p10": 1.0, "p90": 1.5, "repeats": 9}
    curve = early_exit_curve(logits, y, [1e9, 2e9, 4e9])
    full, plain = report["models"]
    names = (("exit1", "map1"), ("exit2", "map2"), ("network", ""))
    full["exits"] = {
        "exits": [
            {"name": name, "tap": tap, **own, "flops": 1e9 * 2**i, "latency_ms": times}
            for i, ((name, tap), own) in enumerate(zip(names, each))
        ],
        "ensemble": together,
        "curve": curve,
        "early": curve[6]
        | {"latency_ms": 1.5, "validation": {"samples": 1234, "top1": 0.8, "last": 0.81, "slack": 0.005}},
    }
    full["effects"] = effects(logits[:, 0], logits[:, 1], y, weights=(torch.eye(3), torch.randn(3, 2)))
    report["peers"] = peers({full["name"]: logits[:, 0], plain["name"]: logits[:, 1]}, y)
    return report


@pytest.fixture
def report():
    return make_report()


@pytest.fixture(scope="module")
def rendered():
    return render(make_report())


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements close in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)
            assert not name.startswith("on")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_is_whole_and_needs_nothing_from_outside(rendered):
    text = rendered
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "http" not in text
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("svg") == 5  # cost, reliability, curves, a confusion matrix for each model
    assert "{{" not in text


def test_the_page_says_what_was_measured(rendered):
    text = Page(rendered).text
    for expected in (
        "Two students",
        "2026-11-21 09:30 UTC",
        "pets, test split",
        "12,345 in 3 classes",
        "sha256:abc",
        "FLOPs are 2 × MACs",
        "over 15 bins",
        "NLL is the mean negative log-likelihood in nats.",
        "runs/student best on validation at step 400 dinov2_vits",
        "3,412,000 2.51 12.3 (11.0 – 15.5)",
        "1,234 (1,100 – 1,300) 32 45.7 cpu (2 cores), 2 threads",
        "dinov2_vits 90.0% 0.123 75.0% 9.2% 5.8% 10.0%",
        "eel cat 2 100.0%",
        "The test split was used once.",
    ):
        assert expected in text, expected


def test_the_pages_main_table_is_the_consoles(report, rendered):
    header, rows = table(report)
    assert header == [
        "model", "top-1", "top-5", "per class", "NLL", "ECE", "agreement", "parameters", "GFLOPs", "latency",
        "images/s",
    ]  # fmt: skip
    assert rows == [
        ["student", "84.2%", "99.0%", "83.1%", "0.512", "2.1%", "90.0%", "3.4 M", "2.51", "12.3 ms", "1,234"],
        ["plain", "84.2%", MISSING, "83.1%", "0.512", "2.1%", *[MISSING] * 5],
    ]
    text = Page(rendered).text
    assert " ".join(header) in text
    assert " ".join(rows[0]) in text
    assert " ".join(rows[1]) in text


def test_what_no_model_has_is_left_out(report):
    report["models"] = [make_model("plain")]
    report["notes"] = []
    assert table(report)[0] == ["model", "top-1", "per class", "NLL", "ECE"]
    page = Page(render(report))
    assert page.tags.count("svg") == 2
    for absent in (
        "Exits",
        "Effects",
        "together",
        "Cost",
        "Student and teacher",
        "Training",
        "Notes",
        "FLOPs",
        "Agreement",
    ):
        assert absent not in page.text


def test_exits_effects_and_peers_are_told(report):
    text = Page(render(add_sections(report))).text
    exits, peers = report["models"][0]["exits"], report["peers"]
    for expected in (
        "Exits",
        f"exit1 map1 {percent(exits['exits'][0]['top1'])}",
        "1.00 1.25 (1.00 – 1.50)",
        f"is at least 0.6: top-1 {percent(exits['early']['top1'])} at ",
        f" {exits['early']['flops'] / 1e9:.2f} GFLOPs and 1.50 ms on average",
        "on average. On 1,234 validation pictures",
        "lose at most 0.5% of accuracy (80.0%, always to the end 81.0%)",
        "Effects of distillation",
        "student compared with dinov2_vits",
        f"leaves {percent(report['models'][0]['effects']['smoothing'])} to the wrong classes on average",
        "λ = 0.5",
        "Models together",
        f"mean of logits {percent(peers['ensemble']['logits']['top1'])}",
        f"student plain {percent(peers['pairs'][0]['disagreement'])}",
    ):
        assert expected in text, expected
    assert "None" not in text
    header, rows = table(report)
    at = header.index("exits' mean")
    assert header[at : at + 3] == ["exits' mean", "early exit", "early GFLOPs"]
    assert [row[at + 2] for row in rows] == [number(exits["early"]["flops"] / 1e9), MISSING]


def test_exits_without_latency_or_threshold(report):
    add_sections(report)
    exits = report["models"][0]["exits"]
    for row in exits["exits"]:
        del row["latency_ms"]
    del exits["early"]
    text = Page(render(report)).text
    assert "exit1 map1" in text
    assert "where each image stops" not in text
    assert "1.25 (1.00" not in text


def test_names_and_paths_are_escaped_everywhere(report):
    evil = copy.deepcopy(add_sections(report))
    for row in evil["models"][0]["exits"]["exits"]:
        row["name"] = row["tap"] = EVIL
    evil["peers"]["pairs"][0]["first"] = EVIL
    evil["peers"]["only"][EVIL] = 0.5
    evil["title"] = evil["created"] = EVIL
    evil["data"] |= {
        "name": EVIL,
        "split": EVIL,
        "fingerprint": EVIL,
        "classes": [EVIL, "<b>", 'a" onload="x'],
    }
    evil["notes"] = [EVIL]
    model = evil["models"][0]
    model |= {"name": EVIL, "path": EVIL, "selection": EVIL}
    model["cost"]["device"] = model["teacher"]["name"] = EVIL
    model["curves"][0][EVIL] = 1.0
    text = render(evil)
    page = Page(text)
    assert "<script" not in text
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count("<script>") >= 10


def test_a_report_read_back_from_json_gives_the_same_page_and_is_not_changed(report, rendered):
    read = json.loads(json.dumps(report))
    assert render(read) == rendered
    assert read == report


def test_a_report_without_models_is_refused(report):
    report["models"] = []
    with pytest.raises(ValueError, match="a report needs at least one model"):
        render(report)


def test_confused_pairs_are_the_largest_off_the_diagonal():
    model = {"confusion": [[5, 1, 4], [0, 9, 0], [2, 2, 0]]}
    largest = [("a", "c", 4, 0.4), ("c", "a", 2, 0.5), ("c", "b", 2, 0.5), ("a", "b", 1, 0.1)]
    assert confused_pairs(model, ["a", "b", "c"]) == largest
    assert confused_pairs({"confusion": [[1, 0], [0, 1]]}, ["a", "b"]) == []
    sparse = {"confused": [(0, 2, 4), (2, 0, 2), (2, 1, 2), (0, 1, 1)]}
    sparse["per_class"] = {"samples": [10, 9, 4], "right": [5, 9, 0]}
    assert confused_pairs(sparse, ["a", "b", "c"]) == largest


def test_a_report_without_a_matrix_shows_the_pairs(report):
    for model in report["models"]:
        del model["confusion"]
        model |= {"confused": [[2, 0, 2], [0, 1, 1]], "per_class": {"samples": [4, 4, 2], "right": [3, 4, 0]}}
    page = Page(render(report))
    assert page.tags.count("svg") == 3  # cost, reliability, curves
    assert "eel cat 2 100.0% cat dog 1 25.0%" in page.text


def test_lists_of_numbers_are_one_line_of_the_file(report):
    name = "[\n1,\n2]"
    report |= {"title": name, "matrix": [[1, 2], [-0.5, None, float("nan")]], "mixed": [1, "a"], "none": []}
    text = to_json(report)
    assert "[ 1, 2 ]" in text
    assert "[ -0.5, null, NaN ]" in text
    assert json.loads(text)["title"] == name
    read = json.loads(text.replace("NaN", "0"))
    assert (read["mixed"], read["none"], read["matrix"]) == ([1, "a"], [], [[1, 2], [-0.5, None, 0]])


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (percent, 0.5, "50.0%"),
        (percent, 1.0, "100.0%"),
        (percent, None, MISSING),
        (percent, float("nan"), MISSING),
        (number, 0.0482, "0.0482"),
        (number, 3.0, "3.00"),
        (number, 99.94, "99.9"),
        (number, 99.96, "100"),
        (number, 12345.6, "12,346"),
        (number, float("inf"), MISSING),
        (amount, 999, "999"),
        (amount, 1000, "1.0 k"),
        (amount, 999_960, "1.0 M"),
        (amount, 3_412_000, "3.4 M"),
        (amount, 1_100_000_000, "1.1 G"),
        (amount, None, MISSING),
        (correlation, 0.5, "+0.50"),
        (correlation, -0.994, "-0.99"),
        (correlation, None, MISSING),
    ],
)
def test_values_are_formatted_for_reading(form, value, text):
    assert form(value) == text
