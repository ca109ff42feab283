"""Generic-to-specific distillation: Huang et al. 2023, arXiv 2302.14771 (G2SD). Two stages.

Generic, without labels: h the output of the 4th of the 8 blocks of the teacher's decoder, no norm behind it,

    L = smooth-L1₂(P(d_s), LayerNorm(h)), mean over all tokens: class, visible and hidden ones

d_s the student's own thin decoder, P two layers. Teacher and student see the same visible patches.

Specific, for classes: with a distillation token's classifier z_d beside the class token's z_c,

    L = ½·CE(z_c, y) + ½·CE(z_d, argmax z_t), y mixed and smoothed; (z_c + z_d)/2 answers
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from kdcli.losses import logits, masked
from kdcli.methods.mae import Masking, pretraining
from kdcli.methods.parts import STUDENT, TEACHER, Count, Part, Positive, S, T, labels, one_turn
from kdcli.methods.trainings import keys, published
from kdcli.models.autoencoder import Predictor
from kdcli.models.distilled import STD, give_token, without_position
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Edit, Method, Party, Phase, Recipe, Term, Turn


def generic(task: Task, masking: Masking, *, teacher_block: Count = 4, beta: Positive = 2.0) -> Method:
    """A masked autoencoder's hidden features, encoder and decoder, taught to a student of the same kind.

    The teacher is a model with its decoder: of ``kdcli distill --method mae``, or one of MAE's files by
    ``kdcli probe --head decoder``. Teacher and student divide a picture into as many patches. Written is the
    student's encoder alone, at the last step. ``decoder`` is how wide its own decoder is: 0 for the paper's,
    128 for students of 192 and 256 of 384; a head for each 32 of it unless ``decoder_heads`` says otherwise.
    ``explained`` in the log is the part of the variance of the targets that the student predicts. As in the
    authors' code all tokens are compared, the class token too, and nothing of the encoders is.
    """
    target = f"~t.decoder{teacher_block}"
    party, call = masking.decoder
    predictor = Party("predictor", "trained", build=Predictor, reads=("d.out", target.removeprefix("~")))
    turn = Turn(
        "student",
        trains=("student", "decoder", "predictor"),
        calls=(
            masking.call,
            Call("t", "teacher", ("x", "visible")),
            call,
            Call("p", "predictor", ("d.out",)),
        ),
        terms=(
            Term("generic", masked.generic_distillation, ("p.out", target), keywords={"beta": beta}),
            Term("explained", masked.explained_variance, ("~p.out", target), 0.0, watched=True),
        ),
        derives=(masking.visible,),
    )
    parties = (masking.student, TEACHER, party, predictor)
    return Method("g2sd-generic", parties, (Phase((turn,)),), recipes=(_generic_recipe(),))


def _generic_recipe() -> Recipe:
    """The released training of the generic stage on ImageNet."""
    parameters = keys("method", mask_ratio=0.75, decoder_depth=4, teacher_block=4, beta=2.0)
    return published(
        "imagenet",
        {**pretraining(300, 10, 4096, 1.5e-4), "optim.min_lr": 2.5e-6, **parameters},
        "GD.sh and the defaults of the authors' code",
        {
            "optim.lr": "1.5e-4 for each 256 of a batch",
            "optim.warmup": "10 of 300 epochs",
            "optim.clip_grad": "the option of 3 is never heeded there",
        },
        (),
        taught=False,
    )


def specific(
    task: Task,
    *,
    ce: float = 0.5,
    hard: float = 0.5,
    head_std: Positive = STD,
    nkd: float = 0.0,
    gamma: Positive = 1.0,
) -> Method:
    """Labels and the teacher's choice of class, each by a token and a classifier of its own.

    The student is a plain ViT, best that of the generic stage; it gets a distillation token without a
    position embedding, and answers by the mean of both classifiers. What is written is timm's distilled ViT.
    The teacher, a finetuned masked autoencoder in the paper, sees the same mixed pictures as the student; its
    choice counts on unlabelled pictures too. ``--recipe paper`` has the mixing, the layer decay (the token is
    of the last group) and the augmentation. New classifiers begin with weights of ``head_std`` 2e-5, as the
    authors' do: made for 200 epochs, it takes a short training a hundred steps to leave, and 0.02 does better
    there (``examples/results/g2sd.md``). ``nkd`` above 0 trains, in place of the token, the one classifier
    by NKD at T 1 and that weight beside the labels, as the code's option does; of mixed pictures the class of
    the larger part counts.
    """
    recipes = (_specific_recipe(),)
    own = labels(task, ce)
    if nkd:
        return one_turn("g2sd-specific", Part((*own, _nkd(nkd, gamma)), derives=(_TRUE,)), recipes=recipes)
    its = Term("hard", logits.hard_distillation, ("s.head_dist", "~t.logits"), hard)
    turn = Turn(
        "student",
        trains=("student",),
        calls=(S, T),
        terms=(*(replace(term, args=("s.head", *term.args[1:])) for term in own), its),
        edits=(Edit("no-position", "gradient", "student", ("*pos_embed",), without_position),),
        groups={"student:*dist_token": {"weight_decay": 0.0}},
    )
    student = replace(STUDENT, prepare=partial(give_token, std=head_std))
    return Method("g2sd-specific", (student, TEACHER), (Phase((turn,)),), recipes=recipes)


def larger_part(target: Tensor) -> Tensor:
    """Class numbers [B] of class numbers, or of the probabilities [B, C] of mixed pictures."""
    return target.argmax(dim=1) if target.ndim == 2 else target


_TRUE = Derive("true", larger_part, ("target",))


def _nkd(weight: float, gamma: float) -> Term:
    keywords = {"gamma": gamma, "temperature": 1.0}
    return Term("nkd", logits.nkd, ("s.logits", "~t.logits", "true"), weight, keywords, rows="labelled")


def _specific_recipe() -> Recipe:
    """The released training of the specific stage on ImageNet."""
    steps = keys(
        "optim",
        opt="adamw",
        lr=4e-3,
        betas=[0.9, 0.999],
        weight_decay=0.05,
        layer_decay=0.75,
        schedule="cosine",
        warmup=5 / 200,
        min_lr=1e-6,
        epochs=200,
        batch_size=1024,
        clip_grad=None,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
    )
    views = keys(
        "views",
        count="live",
        scale=[0.08, 1.0],
        hflip=0.5,
        interpolation="bicubic",
        auto_augment="rand-m9-mstd0.5-inc1",
        erase=0.25,
    )
    return published(
        "imagenet",
        {**steps, **views, **keys("method", ce=0.5, hard=0.5)},
        "SD.sh and the defaults of the authors' code",
        {"optim.lr": "1e-3 for each 256 of a batch", "optim.warmup": "5 of 200 epochs"},
        (),
    )
