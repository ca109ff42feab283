"""Students of vision-language teachers, which answer for classes that no training has seen.

    vlm-ood    L = cls·L_cls + mse·L_mse + contrast·L_im-cst + proximal·L_vlprox + caption·L_cap
               Li et al. 2023, arXiv 2307.03135
    clip-kd    Yang et al. 2024, arXiv 2307.12732

The student has no text tower: it embeds pictures in the teacher's space, where the texts of the classes are
(:mod:`kdcli.losses.texts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.losses import clip_kd as clip
from kdcli.losses import texts as losses
from kdcli.methods.parts import STUDENT, TEACHER, Positive, S
from kdcli.methods.trainings import IMAGENET, keys, published, sgd
from kdcli.models.prompts import learn_contexts
from kdcli.tasks import Task
from kdcli.tasks.zeroshot import TEMPERATURE
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, Term, Turn

Texts = Annotated[int, Field(ge=1, le=1_000_000)]
Contexts = Annotated[int, Field(ge=0, le=256)]
Weighing = Annotated[float, Field(ge=0, le=1e6)]

BANK = "~s:classifier"
_MINE, _ITS = "s.embedding", "~t.embedding"


def vlm_ood(
    task: Task,
    *,
    cls: Weighing = 1.0,
    mse: Weighing = 1.0,
    contrast: Weighing = 1.0,
    proximal: Weighing = 1.0,
    caption: Weighing = 0.0,
    temperature: Positive = TEMPERATURE,
    texts: Texts = 256,
    filtered: bool = True,
    normalised: bool = True,
    direction: Literal["both", "single"] = "both",
    form: Literal["cosine", "squared"] = "cosine",
    caption_form: Literal["code", "temperature", "paper"] = "code",
    contexts: Contexts = 0,
    teacher_view: Literal["plain", "same"] = "plain",
) -> Method:
    """A teacher's space of pictures and texts: distances, neighbours and nearest texts, beside the labels.

    All weights are 1 and τ is 0.07 in the authors' code; ``caption`` weighs 0 until there are captions of the
    training pictures (``data.captions``). The teacher sees each picture once, un-augmented, and is cached;
    ``teacher_view=same`` shows it the student's crops. ``texts`` of ``proximal`` are the nearest ones to the
    teacher's embedding, of rows that it takes for their class (``filtered``). ``direction``, ``form`` and
    ``caption_form`` give the paper's equations where the code, whose numbers were published, has others. The
    paper's students begin with random weights, since ImageNet's labels would tell them of classes that are
    held back, and so do these: a pretrained one (``from_scratch=false``) is put down as a deviation.
    Unlabelled pictures enter ``mse`` and ``contrast``.

    ``contexts`` are vectors that are learned beside the student to stand before the name of each class, where
    a template's words would (CoOp, arXiv 2109.01134); the paper has 8. Their gradient is that of ``cls`` and
    ``proximal``, through the frozen text tower, which embeds the texts of all classes once in each
    micro-batch. In the paper they help where there are a few pictures of new classes, and harm where there
    are none. A student that has learned some goes on from them.

    Raises:
        UsageError: contexts without a term that reads texts.
    """
    if contexts and not (cls or proximal):
        raise UsageError(
            f"method.contexts={contexts}: no term reads texts, so that they would not learn. Raise "
            "method.cls or method.proximal."
        )
    bank = "s:classifier" if contexts else BANK
    shared: dict[str, Any] = {"temperature": temperature}
    pair = (_MINE, _ITS)
    terms = (
        Term("class", losses.text_likelihood, (_MINE, bank, "target"), cls, shared, rows="labelled"),
        Term(
            "distance",
            losses.embedding_distance,
            pair,
            mse,
            {"normalised": normalised},
            scope="sample" if normalised else "batch",
        ),
        Term(
            "contrast",
            losses.image_contrast,
            pair,
            contrast,
            {**shared, "direction": direction, "form": form},
            scope="batch",
        ),
        Term(
            "proximal",
            losses.proximal_texts,
            (*pair, bank, "y"),
            proximal,
            {**shared, "texts": texts, "filtered": filtered},
            scope="batch",
            rows="labelled",
        ),
        Term(
            "caption",
            losses.caption_contrast,
            (_MINE, "caption", "y"),
            caption,
            {**shared, "form": caption_form},
            scope="batch",
            rows="labelled",
        ),
    )
    student = replace(STUDENT, prepare=partial(learn_contexts, count=contexts)) if contexts else STUDENT
    view = "x@plain" if teacher_view == "plain" else "x"
    return _method("vlm-ood", terms, view, student=student, recipes=recipes())


def clip_kd(
    task: Task,
    *,
    cls: Weighing = 0.0,
    features: Weighing = 2000.0,
    relation: Weighing = 1.0,
    interactive: Weighing = 1.0,
    temperature: Positive = TEMPERATURE,
    teacher_temperature: Positive = 0.01,
    reverse: Literal["code", "student"] = "code",
    teacher_view: Literal["plain", "same"] = "same",
) -> Method:
    """CLIP-KD's terms of a picture's embedding: features, relations to texts, and the teacher's texts.

    The paper trains both towers of a student on pictures with captions; here the student embeds pictures
    alone, and a picture's text is that of its class, so that pictures of one class share theirs, and count
    as one another's negatives as in the authors' code. Weights are the code's: 2000 for the mean squared
    difference of features, 1 for the others; ``teacher_temperature`` 0.01 is what OpenAI's CLIP was trained
    to. ``reverse=student`` asks which of the student's pictures goes with a text, where the paper asks for a
    text of the student's, which has none here. ``cls`` adds the cross-entropy over the texts of all classes.
    Student and teacher see the same view, as there.
    """
    text = Derive("text", text_of, (BANK, "y"))
    pictures = (_MINE, "~text", _ITS)
    apart = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    interacting = {"temperature": temperature, "reverse": reverse}
    terms = (
        Term("class", losses.text_likelihood, (_MINE, BANK, "target"), cls, {"temperature": temperature}),
        Term("features", clip.feature_distance, (_MINE, _ITS), features),
        Term("relation", clip.contrastive_relation, pictures, relation, apart, scope="batch"),
        Term("interactive", clip.interactive_contrast, pictures, interactive, interacting, scope="batch"),
    )
    return _method("clip-kd", terms, "x@plain" if teacher_view == "plain" else "x", text)


def text_of(bank: Tensor, y: Tensor) -> Tensor:
    """[B, D] the rows of a bank [C, D] that belong to class numbers [B]."""
    return bank[y]


def _method(
    name: str,
    terms: tuple[Term, ...],
    view: str,
    *derives: Derive,
    student: Party = STUDENT,
    **more: Any,
) -> Method:
    """One turn of the student beside what the teacher makes of a view."""
    calls = (S, Call("t", "teacher", (view,)))
    turn = Turn("student", trains=("student",), calls=calls, terms=terms, derives=derives)
    return Method(name, (student, TEACHER), (Phase((turn,)),), **more)


# -- published trainings -------------------------------------------------------------------------------------


def recipes() -> tuple[Recipe, ...]:
    """Trainings of the paper's account, on small and large data sets, and of the authors' code."""
    small = {**_resnet(epochs=450, drops=(150, 300)), **_VIEWS, **_METHOD}
    large = {**_resnet(epochs=90, drops=(30, 60)), **_VIEWS, **_METHOD}
    code = "the authors' README"
    return (
        published("resnet-small", small, "appendix B of the paper", _NOTES, _LEFT_OUT),
        published("resnet-large", large, f"appendix B of the paper; {code} has the same", _NOTES, _LEFT_OUT),
        published("resnet-code", _repeated(5), code, {**_NOTES, **_REPEATS}, _LEFT_OUT),
        published("vit", _one_cycle(2e-4), "appendix B of the paper", {**_NOTES, **_CYCLE}, _LEFT_OUT),
        published("few-shot", _few_shot(), "appendix B of the paper", {**_NOTES, **_CYCLE}, _LEFT_OUT),
    )


_METHOD = keys("method", cls=1.0, mse=1.0, contrast=1.0, proximal=1.0, temperature=TEMPERATURE, texts=256)
_VIEWS: Mapping[str, Any] = dict(IMAGENET)
_NOTES = {
    "views.scale": "one crop and flip is shared by a whole batch there; here each picture has its own",
    "method.temperature": "of the authors' code; the paper prints none",
}
_REPEATS = {"optim.epochs": "90 epochs of five passes each", "optim.milestones": "30 and 60 of these epochs"}
_CYCLE = {"optim.schedule": "there one cycle, stepped once an epoch; here warm-up over 30 % and cosine"}
_LEFT_OUT = (
    "pictures squashed to 256 x 256 before the crop",
    "random weights at the start (--from-scratch)",
)


def _resnet(*, epochs: float, drops: tuple[int, ...]) -> dict[str, Any]:
    return sgd(lr=0.05, weight_decay=1e-4, epochs=epochs, batch=128, drops=drops)


def _repeated(times: int) -> dict[str, Any]:
    """The schedule of the authors' code, in which an epoch passes over the data several times."""
    return {**_resnet(epochs=90 * times, drops=(30 * times, 60 * times)), **_VIEWS, **_METHOD}


def _one_cycle(peak: float) -> dict[str, Any]:
    steps = keys(
        "optim",
        opt="adamw",
        lr=peak,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.3,
        epochs=450,
        batch_size=128,
        clip_grad=None,
    )
    return {**steps, **_VIEWS, "views.auto_augment": "rand-m9-n2", **_METHOD}


def _few_shot() -> dict[str, Any]:
    steps = keys(
        "optim",
        opt="momentum",
        momentum=0.9,
        lr=0.003,
        weight_decay=1e-4,
        decay_all=True,
        schedule="cosine",
        warmup=0.3,
        epochs=100,
        batch_size=128,
        clip_grad=None,
    )
    return {**steps, **_VIEWS, **_METHOD}
