"""Generic-to-specific distillation: Huang et al. 2023, arXiv 2302.14771 (G2SD). Two stages, one after another.

Generic, without labels: h the output of the 4th of the 8 blocks of the teacher's decoder, no norm behind it,

    L = smooth-L1₂(P(d_s), LayerNorm(h)), mean over all tokens: class, visible and hidden ones

d_s the student's own thin decoder, P two layers. Teacher and student see the same visible patches.
"""

from __future__ import annotations

from kdcli.losses import masked
from kdcli.methods.mae import Masking, pretraining
from kdcli.methods.parts import TEACHER, Count, Positive
from kdcli.methods.trainings import keys, published
from kdcli.models.masked import Predictor
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Recipe, Term, Turn


def generic(task: Task, masking: Masking, *, teacher_block: Count = 4, beta: Positive = 2.0) -> Method:
    """A masked autoencoder's hidden features, encoder and decoder, taught to a student of the same kind.

    The teacher is a model with its decoder: of ``kdcli distill --method mae``, or one of MAE's files by ``kdcli
    probe --head decoder``. Teacher and student divide a picture into as many patches. Written is the student's
    encoder alone, at the last step. ``explained`` in the log is the part of the variance of the targets that
    the student predicts. As in the authors' code, and not in the paper: all tokens are compared, the class
    token too, and nothing of the encoders is.
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
