"""The table of methods: one row each, by name. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal["any", "picture", "class", "pixel", "object", "features", "text"]


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: ``module:function`` of the task, of what ``parts`` make, and of parameters.
        help: one line.
        paper: where it comes from.
        teacher: whether it needs one.
        needs: of a task. ``any``: the method learns by the task's own terms only; ``picture``: it compares
            what networks say of whole pictures; ``class``: it takes logits for those of one class a picture,
            or reads class numbers; ``pixel``: it compares maps of logits; ``object``: it compares
            what detectors give of each place and query; ``features``: it learns from pictures alone, without
            labels or answers; ``text``: it compares embeddings of pictures with those of texts.
        several: whether each of several teachers is matched by itself; the function takes their number.
        twin: whether teacher and student must be of one architecture.
        scratch: whether its students begin with random weights unless the user says otherwise.
        parts: functions that make what ``target`` is given after the task. Their parameters are the method's
            too; ``weight`` where it may be given by name.
        published: function of its recipes, of a method that is made for more than a task.
        before: of a method of ``kdcli compress`` that removes channels before the training, and not after it:
            whether by ``weights`` alone, or by ``gradients`` on a few batches.
        cuts: of a method of ``kdcli compress``, whether rows of the least norm go at the end too, until a
            target is met.
        which: of a method of ``kdcli compress``, layers of a block that it works on; see
            :func:`kdcli.models.sites.sites`.
    """

    target: str
    help: str
    paper: str
    teacher: bool = True
    needs: Needs = "class"
    several: bool = False
    twin: bool = False
    scratch: bool = False
    parts: tuple[str, ...] = ()
    published: str = ""
    which: Literal["cdd", "resrep"] = "resrep"
    before: Literal["", "weights", "gradients"] = ""
    cuts: bool = False


def _at(module: str, function: str) -> str:
    return f"kdcli.methods.{module}:{function}"


_TF_KD = "Yuan et al. 2020, arXiv 1909.11723"
_TANG = "Tang et al. 2020, arXiv 2002.03532"
_CHO = "Cho & Hariharan 2019, ICCV"
_ALLEN_ZHU = "Allen-Zhu & Li 2020, arXiv 2012.09816"

METHODS: dict[str, Entry] = {
    "supervised": Entry(
        _at("supervised", "supervised"),
        "labels only: the baseline, and the way to train a first teacher",
        "none",
        teacher=False,
        needs="any",
    ),
    "kd": Entry(
        _at("kd", "kd"),
        "labels and softened teacher logits",
        "Hinton, Vinyals & Dean 2015, arXiv 1503.02531",
        needs="any",
        parts=(_at("kd", "part"),),
    ),
    "task-specific": Entry(
        _at("task_specific", "task_specific"),
        "a probed teacher on all pictures, labels on labelled ones",
        "Marrie et al. 2024, arXiv 2402.11305",
        needs="any",
    ),
    "dkd": Entry(
        _at("dkd", "dkd"),
        "the true class and the others apart",
        "Zhao et al. 2022, arXiv 2203.08679",
        parts=(_at("dkd", "part"),),
    ),
    "eskd": Entry(_at("eskd", "eskd"), "the teacher's term is dropped part-way", _CHO, needs="picture"),
    "sequential": Entry(
        _at("eskd", "sequential"), "each student teaches the next one", _CHO, needs="picture"
    ),
    "self": Entry(
        _at("ensemble", "self"),
        "an earlier run of the same network teaches",
        _ALLEN_ZHU,
        needs="picture",
        twin=True,
    ),
    "ensemble": Entry(
        _at("ensemble", "ensemble"), "the mean of several teachers", _ALLEN_ZHU, needs="picture"
    ),
    "kd-pt": Entry(_at("effects", "kd_pt"), "the teacher's confidence only", _TANG),
    "kd-sim": Entry(_at("effects", "kd_sim"), "the teacher's class relations only", _TANG),
    "kd-topk": Entry(_at("effects", "kd_topk"), "the teacher's largest probabilities", _TANG),
    "hint": Entry(
        _at("hint", "hint"),
        "one regressed map, jointly with labels: the FitNet of tables",
        "Romero et al. 2015, arXiv 1412.6550, as RepDistiller has it",
        needs="picture",
        parts=(_at("hint", "part"),),
    ),
    "fitnets": Entry(
        _at("fitnets", "fitnets"),
        "a hint first, then the whole student: the paper's two phases",
        "Romero et al. 2015, arXiv 1412.6550",
        parts=(_at("fitnets", "guided"),),
    ),
    "at": Entry(
        _at("at", "at"),
        "attention maps",
        "Zagoruyko & Komodakis 2017, arXiv 1612.03928",
        needs="picture",
        parts=(_at("at", "part"),),
    ),
    "nst": Entry(
        _at("nst", "nst"),
        "selectivity of channels",
        "Huang & Wang 2017, arXiv 1707.01219",
        needs="picture",
        parts=(_at("nst", "part"),),
    ),
    "rkd": Entry(
        _at("rkd", "rkd"),
        "distances and angles between pictures",
        "Park et al. 2019, arXiv 1904.05068",
        needs="picture",
        parts=(_at("rkd", "part"),),
    ),
    "ft": Entry(
        _at("ft", "ft"),
        "factors of the teacher's map, learned before by rebuilding it",
        "Kim et al. 2018, arXiv 1802.04977",
        needs="picture",
        parts=(_at("ft", "paraphrase"),),
    ),
    "ab": Entry(
        _at("ab", "ab"),
        "which neurons the teacher activates first, then labels",
        "Heo et al. 2019, arXiv 1811.03233, as RepDistiller has it",
        needs="picture",
        parts=(_at("ab", "boundaries"),),
    ),
    "darkrank": Entry(
        _at("darkrank", "darkrank"),
        "the order of each picture's nearest others",
        "Chen et al. 2018, arXiv 1707.01220",
        needs="picture",
        parts=(_at("darkrank", "part"),),
    ),
    "vid": Entry(
        _at("vid", "vid"),
        "the teacher's maps likely under what is regressed from the student's",
        "Ahn et al. 2019, arXiv 1904.05835",
        needs="picture",
        parts=(_at("vid", "part"),),
    ),
    "mgd": Entry(
        _at("mgd", "mgd"),
        "the teacher's map made anew of the student's masked one",
        "Yang et al. 2022, arXiv 2205.01529",
        needs="picture",
        parts=(_at("mgd", "part"),),
    ),
    "nkd": Entry(
        _at("nkd", "nkd"),
        "the true class by the teacher's certainty, the others as one distribution",
        "Yang et al. 2023, arXiv 2303.13005",
        parts=(_at("nkd", "part"),),
    ),
    "crd": Entry(
        _at("crd", "crd"),
        "which of many pictures the other network sees, from a memory bank of all",
        "Tian et al. 2020, arXiv 1910.10699",
        parts=(_at("crd", "part"),),
    ),
    "cwd": Entry(
        _at("cwd", "cwd"),
        "where in a picture the teacher sees each class",
        "Shu et al. 2021, arXiv 2011.13256",
        needs="pixel",
        parts=(_at("cwd", "part"),),
    ),
    "cwd-features": Entry(
        _at("cwd_features", "features"),
        "where in a picture each channel of a detector's neck is active",
        "Shu et al. 2021, arXiv 2011.13256",
        needs="object",
        parts=(_at("cwd_features", "part"),),
    ),
    "detrdistill-logits": Entry(
        _at("detrdistill", "logits"),
        "each of a detector's queries, matched to one of the student's",
        "Chang et al. 2022, arXiv 2211.10156, its first part",
        needs="object",
        parts=(_at("detrdistill", "part"),),
    ),
    "sp": Entry(
        _at("sp", "sp"),
        "similarities between pictures",
        "Tung & Mori 2019, arXiv 1907.09682",
        needs="picture",
        parts=(_at("sp", "part"),),
    ),
    "cc": Entry(
        _at("cc", "cc"),
        "correlation of neighbours",
        "Peng et al. 2019, arXiv 1904.01802",
        needs="picture",
        parts=(_at("cc", "part"),),
    ),
    "pkt": Entry(
        _at("pkt", "pkt"),
        "affinities as probabilities",
        "Passalis & Tefas 2018, arXiv 1803.10837",
        needs="picture",
        parts=(_at("pkt", "part"),),
    ),
    "byot": Entry(
        _at("byot", "byot"),
        "exits learn from the network's own end",
        "Zhang et al. 2019, arXiv 1905.08094",
        teacher=False,
    ),
    "dml": Entry(
        _at("dml", "dml"),
        "networks that teach one another",
        "Zhang et al. 2018, arXiv 1706.00384",
        teacher=False,
    ),
    "one": Entry(
        _at("one", "one"),
        "branches and their gated ensemble",
        "Lan et al. 2018, arXiv 1806.04606",
        teacher=False,
    ),
    "okddip": Entry(
        _at("okddip", "okddip"),
        "diverse peers by attention, and a leader",
        "Chen et al. 2020, arXiv 1912.00350",
        teacher=False,
    ),
    "lsr": Entry(_at("label_smoothing", "lsr"), "label smoothing", _TF_KD, teacher=False),
    "tf-kd-self": Entry(
        _at("label_smoothing", "tf_kd_self"), "the student's own pretrained self teaches", _TF_KD, twin=True
    ),
    "tf-kd-reg": Entry(_at("label_smoothing", "tf_kd_reg"), "a teacher made by hand", _TF_KD, teacher=False),
    "reversed": Entry(_at("label_smoothing", "reversed_kd"), "a weaker teacher", _TF_KD),
    "defective": Entry(_at("label_smoothing", "defective"), "a badly trained teacher", _TF_KD),
    "sskd": Entry(
        _at("sskd", "sskd"),
        "self-supervision on turned views, transferred with selection",
        "Xu et al. 2020, arXiv 2006.07114",
        parts=(_at("sskd", "head"), _at("sskd", "turned_views"), _at("sskd", "tables")),
    ),
    "generic": Entry(
        _at("backbones", "generic"),
        "features of any foundation model, or of several, without labels",
        "AM-RADIO's terms at one scale, arXiv 2312.06709",
        needs="features",
        several=True,
    ),
    "proteus": Entry(
        _at("backbones", "proteus"),
        "class token, all tokens and hidden patches of a foundation model",
        "Zhang et al. 2024, arXiv 2407.10366",
        needs="features",
        several=True,
    ),
    "radio": Entry(
        _at("backbones", "radio"),
        "summaries and maps of several foundation models",
        "Ranzinger et al. 2024, arXiv 2312.06709",
        needs="features",
        several=True,
    ),
    "seed": Entry(
        _at("backbones", "seed"),
        "likeness to a queue of the teacher's features",
        "Fang et al. 2021, arXiv 2101.04731",
        needs="features",
        several=True,
    ),
    "vlm-ood": Entry(
        _at("vlm", "vlm_ood"),
        "a vision-language teacher's space of pictures and texts, for classes beyond those of training",
        "Li et al. 2023, arXiv 2307.03135",
        needs="text",
        scratch=True,
        published="kdcli.methods.vlm:recipes",
    ),
    "clip-kd": Entry(
        _at("vlm", "clip_kd"),
        "features, relations between pictures and texts, and texts themselves of a vision-language teacher",
        "Yang et al. 2024, arXiv 2307.12732",
        needs="text",
    ),
    "mae": Entry(
        _at("mae", "mae"),
        "pixels of hidden patches: pretraining without labels or teacher",
        "He et al. 2022, arXiv 2111.06377",
        teacher=False,
        needs="features",
        parts=(_at("mae", "masking"),),
    ),
    "g2sd-generic": Entry(
        _at("g2sd", "generic"),
        "hidden features of a masked autoencoder's decoder, without labels",
        "Huang et al. 2023, arXiv 2302.14771",
        needs="features",
        parts=(_at("mae", "masking"),),
    ),
    "g2sd-specific": Entry(
        _at("g2sd", "specific"),
        "labels and the teacher's choice, each by a token of its own",
        "Huang et al. 2023, arXiv 2302.14771",
    ),
    "g2sd-detection": Entry(
        _at("g2sd_detection", "detection"),
        "a detector's maps and scores of places where the teacher sees objects",
        "Huang et al. 2023, arXiv 2302.14771",
        needs="object",
    ),
    "dafl": Entry(
        _at("dafl", "dafl"),
        "without data: a generator and the student, both from the teacher",
        "Chen et al. 2019, arXiv 1904.01186",
    ),
}

COMPRESSORS: dict[str, Entry] = {
    "resrep": Entry(
        "kdcli.compression.resrep:resrep",
        "rows of least norm are reset until a target of cost is met",
        "Ding et al. 2021, arXiv 2007.03260",
        teacher=False,
        needs="any",
        published="kdcli.compression.resrep:recipes",
        which="resrep",
    ),
    "cdd": Entry(
        "kdcli.compression.cdd:cdd",
        "rows that retrieval can do without are reset, from a student as large as its teacher on",
        "Xie et al. 2023, arXiv 2303.09230",
        needs="any",
        published="kdcli.compression.cdd:recipes",
        which="cdd",
        cuts=True,
    ),
    "magnitude": Entry(
        "kdcli.compression.magnitude:magnitude",
        "channels of least filter norm go first, then what is left learns: a baseline",
        "Li et al. 2017, arXiv 1608.08710",
        teacher=False,
        needs="any",
        published="kdcli.compression.magnitude:recipes",
        which="resrep",
        before="weights",
    ),
    "taylor": Entry(
        "kdcli.compression.taylor:taylor",
        "channels that the loss can do without go first, then what is left learns: a baseline",
        "Molchanov et al. 2019, arXiv 1906.10771",
        teacher=False,
        needs="any",
        published="kdcli.compression.taylor:recipes",
        which="resrep",
        before="gradients",
    ),
}
"""Methods of ``kdcli compress``: functions of a task, and of what the student's layers are."""

ADDITIONS: dict[str, str] = {
    name: METHODS[name].parts[0]
    for name in (
        *("kd", "dkd", "hint", "at", "nst", "rkd", "sp", "cc", "pkt"),
        *("cwd", "cwd-features", "detrdistill-logits"),
    )
}
"""Terms that ``--add`` puts beside any method's: name → function of the weight that returns a part."""
