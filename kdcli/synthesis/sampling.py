"""How a diffusion mixer samples: the fields of its section, importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdcli.config import Section, method_option
from kdcli.errors import UsageError

_TOKENS = 5  # of Image Mixer's own script


class SamplingSection(Section):
    """Tokens, guidance and solver; the defaults are Image Mixer's own."""

    strengths: list[Annotated[float, Field(ge=-1000, le=1000)]] = method_option(
        [], "Factor of a source's embedding (repeat per source; default 1).", "--strengths"
    )
    pad_tokens: int | None = method_option(
        None, "Fill up with zero tokens to so many (Image Mixer: 5; else 0).", "--pad-tokens", ge=0, le=1000
    )
    guidance: float = method_option(
        3.0, "Classifier-free guidance, against zeros.", "--guidance", ge=0, le=1000
    )
    steps: int = method_option(30, "Denoising steps.", "--steps", ge=1, le=1000)
    scheduler: Literal["ddim", "dpm-solver++", "unipc", "euler", "heun", "pndm"] = method_option(
        "ddim", "ddim, dpm-solver++, unipc, euler, heun or pndm.", "--scheduler"
    )


def resolved(section: SamplingSection, mixer: str, sources: int, image_mixer: bool) -> SamplingSection:
    """The section with the number of tokens that the weights are used with.

    Args:
        section: as given.
        mixer: its name.
        sources: K.
        image_mixer: whether the weights are Image Mixer's.

    Raises:
        UsageError: not as many strengths as sources, or more sources than tokens.
    """
    if len(section.strengths) not in (0, sources):
        raise UsageError(f"--strengths: {len(section.strengths)} for {sources} sources; repeat per source.")
    pad = section.pad_tokens
    if pad is None:
        pad = _TOKENS if image_mixer else 0
    if 0 < pad < (1 if mixer == "tokens-mean" else sources):
        raise UsageError(f"--sources {sources} is more than --pad-tokens {pad}; use --pad-tokens 0.")
    return section.model_copy(update={"pad_tokens": pad})
