"""Channel-wise distillation of segmentation: Shu et al. 2021, arXiv 2011.13256.

L = ce·CE(z_s, y) + kd·τ²·KL of each pixel + weight·τ²·mean_{n,c} H(softmax_hw(z_t/τ), softmax_hw(z_s/τ))
"""

from __future__ import annotations

from kdcli.losses.channels import channel_cross_entropy, channel_kl_divergence
from kdcli.methods.parts import Part, Positive, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, published
from kdcli.tasks import Task
from kdcli.words import Method, Recipe, Term


def part(weight: float = 3.0, *, temperature: Positive = 1.0, name: str = "cwd") -> Part:
    """The cross-entropy between the maps of each class; their KL beside it, for the log alone."""
    keywords = {"temperature": temperature}
    loss = Term(name, channel_cross_entropy, ("s.logits", "~t.logits", "mask"), weight, keywords)
    taps = ("~s.logits", "~t.logits", "mask")  # without a gradient
    told = Term(f"{name}-kl", channel_kl_divergence, taps, 0.0, keywords, watched=weight != 0)
    return Part((loss, told))


def cwd(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0) -> Method:
    """Where in a picture the teacher sees each class, by a softmax over the positions of its map.

    Weight 3 and τ 1 are those of G2SD's run.sh (Huang et al. 2023, arXiv 2302.14771) for class logits before
    they are enlarged, and its cross-entropy in the place of the paper's KL, of equal gradient: its value ends
    at the entropy of the teacher's maps, so the figure to read is cwd-kl in the log, which weighs nothing.
    The KL of each pixel is the alternative (weight=0, kd=1), at the same temperature: summed over classes
    here, where that code divides by their number too. Unlabelled pictures enter all but the labels' term.
    """
    temperature = taught.terms[0].keywords["temperature"]
    terms = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("cwd", Part(terms), taught, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """G2SD's training of ADE20K, in which CWD is the specific distillation."""
    steps = keys(
        "optim",
        opt="adamw",
        betas=[0.9, 0.999],
        lr=1e-4,
        weight_decay=0.05,
        layer_decay=0.65,
        schedule="poly",
        decay_rate=1.0,
        warmup=1500 / 160_000,
        warmup_from=1e-6,
        max_steps=160_000,
        batch_size=16,
        clip_grad=None,
    )
    views = keys(
        "views", count="live", scale=[0.25, 1.0], ratio=[1.0, 1.0], hflip=0.5, interpolation="bilinear"
    )
    parameters = keys("method", weight=3.0, temperature=1.0, ce=1.0, kd=0.0)
    notes = {
        "optim.batch_size": "8 processes of 2; the paper's 4 each is a slip, says an author",
        "optim.decay_rate": "the power",
        "views.scale": "resized by 0.5 to 2 there, then a crop of 512 pixels",
        "method.temperature": "10 in the configuration file, which run.sh overrides",
    }
    left_out = (
        "views of 512 pixels (--image-size 512)",
        "UPerNet as decode head (head=upernet)",
        "an auxiliary head with a cross-entropy of weight 0.4",
        "stochastic depth of 0.1 (drop_path=0.1)",
        "crops of which one class covers at most 0.75",
        "photometric distortion",
    )
    settings = {**steps, **views, **parameters}
    return published("ade20k", settings, "G2SD's run.sh of segmentation", notes, left_out)
