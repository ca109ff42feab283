"""Speed of distillation without labels against hand-written loops of the same work.

    uv run examples/benchmarks/backbones.py [--pairs 15] [--json examples/results/benchmark_backbones.json]

All arms see the same pictures through the same loader, on one thread, in random order: the steps of ``kdcli
distill --method generic`` (a CNN after a CNN, maps and pooled features at one scale) and ``g2sd-generic``
(ViTs, three quarters of the patches hidden), and for each the loop that a researcher writes of plain torch
and timm: teacher under no_grad, student, adapters, loss, backward, clip, AdamW, cosine. Weights are random:
speed does not depend on them.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from _paired import device_line, paired, ratio
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.stages import distill, probe

QUIET = Console(silent=True)
BATCH, STEPS, SIZE = 32, 8, 48
CNN = {"teacher": "tf_efficientnet_lite0", "student": "resnet10t", "size": SIZE}
VIT = {"patch_size": 8, "depth": 6, "num_heads": 4}
WIDE, NARROW = {**VIT, "embed_dim": 256}, {**VIT, "embed_dim": 128}
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def named(vit: dict[str, int]) -> str:
    """As ``--student`` has it."""
    return ",".join(["vit_tiny_patch16_224", *(f"{name}={value}" for name, value in vit.items())])


class Arms:
    """Everything the arms share, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_file(timm.create_model(CNN["teacher"]).state_dict(), folder / "cnn.safetensors")
        options = {"teacher": CNN["teacher"], "weights": str(folder / "cnn.safetensors"), "image_size": SIZE}
        options |= {"head": "keep", "out": str(folder / "cnn")}
        teacher = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
        mae = {"student": named(WIDE)}
        decoder = {"method.decoder": 64, "method.decoder_depth": 8}
        made = self.plan("mae", {**mae, **decoder, "method.name": "mae", "optim.max_steps": 1})
        autoencoder = distill.run(made, QUIET).path
        student = {"student": named(NARROW)}
        self.plans = {
            "generic": self.plan(
                "generic", {"teacher": str(teacher), "student": CNN["student"], "method.name": "generic"}
            ),
            "g2sd-generic": self.plan(
                "g2sd-generic",
                {"teacher": str(autoencoder), **student, "method.name": "g2sd-generic", "method.decoder": 64},
            ),
        }

    def plan(self, name: str, more: dict[str, Any]) -> distill.Plan:
        """A plan of the stage, at the size of this benchmark."""
        options = {"from_scratch": True, "image_size": SIZE, "data.source": "example:fashion-mnist"}
        options |= {"optim.max_steps": STEPS, "optim.batch_size": BATCH, "evaluate_every": 1e6}
        options |= {"overwrite": True, "out": str(self.folder / name), "optim.warmup": 0.0, **more}
        made = distill.plan(resolve(distill.Config, options=options), QUIET)
        assert isinstance(made, distill.Plan)
        return made

    def kdcli(self, name: str) -> float:
        """Seconds of the steps of one run, as its manifest has them (no set-up, no export)."""
        out = distill.run(self.plans[name], QUIET).path
        return float(json.loads((out / "kdcli.json").read_text())["seconds"])

    def batches(self, name: str) -> Iterator[dict[str, Tensor]]:
        """The batches that the plan's run sees."""
        plan = self.plans[name]
        material = plan.material
        loader = training_loader(material.pool, material.view, max_pixels=plan.config.data.max_pixels)
        return loader([material.order.keys(k) for k in range(STEPS)])

    def hand(self, name: str, step: Callable[[Tensor], Tensor], trained: nn.Module) -> float:
        """A loop without kdcli's engine: seconds of its steps."""
        optimizer = timm.optim.create_optimizer_v2(trained, opt="adamw", lr=5e-4, weight_decay=0.05)
        trained.train()
        start = time.perf_counter()
        for number, batch in enumerate(self.batches(name)):
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * (1 + math.cos(math.pi * number / STEPS)) / 2
            loss = step(batch["x"].float())
            loss.backward()
            for part in trained.children():
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - start


def adapter(width: int, wanted: int) -> nn.Module:
    """Linear, LayerNorm, GELU, linear."""
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, wanted))


class Running:
    """Mean and one scale of all rows seen."""

    def __init__(self) -> None:
        self.count, self.sum, self.square = 0, 0.0, 0.0

    def scaled(self, rows: Tensor, few: Tensor) -> Tensor:
        """Rows [..., D] less the mean, over the scale, of those that ``few`` [M, D] have shown so far."""
        few = few.double()
        self.count, self.sum = self.count + len(few), self.sum + few.sum(dim=0)
        self.square = self.square + few.square().sum(dim=0)
        mean = self.sum / self.count
        scale = (self.square / self.count - mean.square()).mean().sqrt()
        return (rows - mean.float()) / scale.float()


def features_by_hand() -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Pooled features and maps of a CNN after those of another."""
    teacher = timm.create_model(CNN["teacher"], num_classes=0).eval().to(memory_format=torch.channels_last)
    student = timm.create_model(CNN["student"], num_classes=0).to(memory_format=torch.channels_last)
    width, wanted = student.num_features, teacher.head_hidden_size
    trained = nn.ModuleDict(
        {"student": student, "pooled": adapter(width, wanted), "grid": adapter(width, wanted)}
    )
    pooled_scale, grid_scale = Running(), Running()
    spec = teacher.pretrained_cfg
    mean, std = (torch.tensor(spec[key]).view(1, 3, 1, 1) * 255 for key in ("mean", "std"))

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            maps = teacher.forward_features((x - mean) / std)
            pooled = teacher.forward_head(maps, pre_logits=True)
            its = maps.flatten(2).transpose(1, 2)
            places = torch.randint(its.shape[1], (len(its), 4, 1)).expand(-1, -1, its.shape[2])
            its = grid_scale.scaled(its, its.gather(1, places).flatten(0, 1))
            pooled = pooled_scale.scaled(pooled, pooled)
        mine = student.forward_features((x - MEAN) / STD)
        flat = trained["pooled"](student.forward_head(mine, pre_logits=True))
        mine = trained["grid"](mine.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if mine.shape[2:] != maps.shape[2:]:
            mine = F.interpolate(mine, maps.shape[2:], mode="bilinear", antialias=True)
        mine = mine.flatten(2).transpose(1, 2)
        loss = 1 - F.cosine_similarity(flat, pooled).mean()
        cosine = 1 - F.cosine_similarity(mine, its, dim=2).mean()
        return loss + 0.9 * cosine + 0.1 * F.smooth_l1_loss(mine, its)

    return step, trained


class Decoder(nn.Module):
    """Embeds tokens, puts mask tokens between them, and runs blocks."""

    def __init__(self, encoder: int, width: int, depth: int, patches: int) -> None:
        super().__init__()
        self.embed, self.mask = nn.Linear(encoder, width), nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("places", torch.randn(1, 1 + patches, width))
        self.blocks = nn.Sequential(*(Block(width, max(width // 32, 1), qkv_bias=True) for _ in range(depth)))

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Of the class token and some tokens, all in their places."""
        x = self.embed(tokens)
        hidden = self.mask.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        whole = torch.cat([x[:, 1:], hidden], dim=1)
        whole = whole.gather(1, restore[..., None].expand(-1, -1, whole.shape[2]))
        return self.blocks(torch.cat([x[:, :1], whole], dim=1) + self.places)


def masked_by_hand() -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """The generic stage of G2SD."""
    sides = {"img_size": SIZE, "num_classes": 0}
    teacher = timm.create_model("vit_tiny_patch16_224", **sides, **WIDE).eval()
    student = timm.create_model("vit_tiny_patch16_224", **sides, **NARROW)
    patches = student.patch_embed.num_patches
    theirs = Decoder(WIDE["embed_dim"], 64, 4, patches).eval()
    predictor = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    own = Decoder(NARROW["embed_dim"], 64, 4, patches)
    student.pos_embed.requires_grad_(False)
    trained = nn.ModuleDict({"student": student, "decoder": own, "predictor": predictor})
    seen = int(patches * 0.25)

    def encoded(body: Any, x: Tensor, kept: Tensor) -> Tensor:
        tokens = body._pos_embed(body.patch_embed(x))
        shown = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        return body.norm(body.blocks(torch.cat([tokens[:, :1], shown], dim=1)))

    def step(x: Tensor) -> Tensor:
        x = (x - MEAN) / STD
        order = torch.rand(len(x), patches).argsort(dim=1)
        kept, restore = order[:, :seen], order.argsort(dim=1)
        with torch.no_grad():
            target = theirs(encoded(teacher, x, kept), restore)
            target = F.layer_norm(target, target.shape[-1:], eps=1e-6)
        found = predictor(own(encoded(student, x, kept), restore))
        return F.smooth_l1_loss(found, target, beta=2.0)

    return step, trained


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    makers = {"generic": features_by_hand, "g2sd-generic": masked_by_hand}
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(Path(folder))
        timed: dict[str, Callable[[], float]] = {}
        for name, make in makers.items():
            timed[name] = lambda name=name: arms.kdcli(name)
            timed[f"{name} by hand"] = lambda name=name, make=make: arms.hand(name, *make())
        times = paired(timed, arguments.pairs, seed=0)
    report = {"device": device_line(), "pairs": arguments.pairs, "steps": STEPS, "batch": BATCH, "ratios": {}}
    print(report["device"])
    print(f"{STEPS} steps of {BATCH} at {SIZE} px, {arguments.pairs} pairs")
    print("throughput over that of the loop by hand: median and 90 % interval")
    for name in makers:
        median, low, high = ratio(times, f"{name} by hand", name)
        report["ratios"][f"{name} / by hand"] = {"median": median, "low": low, "high": high, "wanted": 0.95}
        print(f"  {name:>14}  {median:.3f}  ({low:.3f} to {high:.3f})   wanted 0.95")
    report["seconds"] = times
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
