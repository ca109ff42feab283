"""Masked autoencoders: He et al. 2022, arXiv 2111.06377 (MAE). Pretraining without labels or teacher.

L = mean over hidden patches of (pixels told − pixels)², each patch's pixels at mean 0 and variance 1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from kdcli.losses import masked
from kdcli.methods.parts import STUDENT, Few
from kdcli.methods.trainings import keys, published
from kdcli.models.autoencoder import decoder_for
from kdcli.models.masked import fix_positions, random_visible
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, Term, Turn

Ratio = Annotated[float, Field(gt=0, lt=1)]
Heads = Annotated[int, Field(ge=0, le=256)]
Width = Annotated[int, Field(ge=0, le=65_536)]


@dataclass(frozen=True)
class Masking:
    """Which patches a student sees, and the decoder that it is given.

    Attributes:
        student: whose position embeddings are fixed where it starts from random weights.
        visible: drawn for each picture, the same for all networks of a step.
        call: of the student on what is visible.
        decoder: party and call, named ``d``.
    """

    student: Party
    visible: Derive
    call: Call
    decoder: tuple[Party, Call]


def masking(
    *, mask_ratio: Ratio = 0.75, decoder: Width = 0, decoder_depth: Few = 4, decoder_heads: Heads = 0
) -> Masking:
    """What is hidden, and the student's decoder, as wide as ``decoder`` says.

    0 is a width by the student's, 128 for 192 and 256 for 384 (G2SD's), and a head for each 32 of it.
    """
    build = partial(decoder_for, width=decoder, depth=decoder_depth, heads=decoder_heads)
    visible = Derive("visible", random_visible, ("x", "~s:patches"), {"ratio": mask_ratio})
    party = Party("decoder", "trained", build=build, reads=("s.tokens", "s:patches"))
    return Masking(
        replace(STUDENT, prepare=fix_positions),
        visible,
        Call("s", "student", ("x", "visible")),
        (party, Call("d", "decoder", ("s.tokens", "visible"))),
    )


def mae(task: Task, masking: Masking, *, norm_pixels: bool = True) -> Method:
    """An encoder sees a quarter of the patches, and a decoder tells the pixels of the others.

    The decoder is written beside the encoder: the two are a teacher of ``g2sd-generic``. A student of random
    weights has fixed position embeddings of sines and cosines. ``decoder`` is how wide the decoder is: 0 for
    G2SD's, 128 for students of 192 and 256 of 384; a head for each 32 of it. The paper's decoder is 512 wide
    and has 8 blocks (``--recipe paper``). The last step is written: no label chooses one.
    """
    party, call = masking.decoder
    party = replace(party, reads=(*party.reads, "s.input"))
    turn = Turn(
        "student",
        trains=("student", "decoder"),
        calls=(masking.call, call),
        terms=(
            Term(
                "pixels",
                masked.reconstruction,
                ("d.pixels", "~s.input", "visible", "~s:patches"),
                keywords={"norm_pixels": norm_pixels},
            ),
        ),
        derives=(masking.visible,),
    )
    parties = (masking.student, party)
    return Method("mae", parties, (Phase((turn,)),), beside=("decoder",), recipes=(_recipe(),))


def pretraining(epochs: int, warmup: int, batch: int, rate: float) -> dict[str, Any]:
    """The training that MAE and G2SD share: AdamW, a cosine, crops of a fifth of the picture and more."""
    return {
        **keys(
            "optim",
            opt="adamw",
            lr=rate * batch / 256,
            betas=[0.9, 0.95],
            weight_decay=0.05,
            schedule="cosine",
            warmup=warmup / epochs,
            epochs=epochs,
            batch_size=batch,
            clip_grad=None,
        ),
        **keys("views", count="live", scale=[0.2, 1.0], hflip=0.5, interpolation="bicubic"),
    }


def _recipe() -> Recipe:
    """The paper's pretraining of ViT-L on ImageNet."""
    decoder = keys("method", decoder=512, decoder_depth=8, decoder_heads=16, mask_ratio=0.75)
    return published(
        "imagenet",
        {**pretraining(800, 40, 4096, 1.5e-4), **decoder, "method.norm_pixels": True},
        "PRETRAIN.md and main_pretrain.py of the authors' code, from memory",
        {"optim.lr": "1.5e-4 for each 256 of a batch", "optim.warmup": "40 of 800 epochs"},
        (),
        taught=False,
    )
