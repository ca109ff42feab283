"""An attention whose keys, or values, have lost channels: timm's own has one width for all three.

Every head has as many as the others, so that one product serves all of them. The scale of the logits stays
that of the whole width: a channel of queries that was zero changes nothing when it goes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.Module):
    """What timm's ``Attention`` computes, with widths of its own; its parts have the same names.

    Args:
        own: timm's, or a narrow one, whose parts are taken over.
        heads: of it.
        keys: channels of a head's queries, and of its keys.
        values: channels of a head's values.

    Raises:
        ValueError: it has a gate, whose width is that of all heads.

    Attributes:
        num_heads: of it.
        head_dim: channels of a head's queries and keys.
        value_dim: channels of a head's values.
        attn_dim: channels that ``proj`` takes.
        scale: of the logits.
    """

    def __init__(self, own: Any, heads: int, keys: int, values: int) -> None:
        super().__init__()
        if own.gate is not None:
            raise ValueError("an attention with a gate keeps its channels")
        self.gate = None  # as those who look for one ask
        self.num_heads, self.head_dim, self.value_dim = heads, keys, values
        self.attn_dim = heads * values
        self.scale, self.fused_attn = own.scale, own.fused_attn
        self.qkv, self.q_norm, self.k_norm = own.qkv, own.q_norm, own.k_norm
        self.attn_drop, self.norm = own.attn_drop, own.norm
        self.proj, self.proj_drop = own.proj, own.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, N, D] of tokens [B, N, D].

        Args:
            x: tokens.
            attn_mask: as timm's takes it.
            is_causal: whether a token sees those before it only.
        """
        from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask

        batch, count = x.shape[:2]
        widths = [self.num_heads * width for width in (self.head_dim, self.head_dim, self.value_dim)]
        q, k, v = (
            part.reshape(batch, count, self.num_heads, -1).transpose(1, 2)
            for part in self.qkv(x).split(widths, dim=-1)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            dropped = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attn_mask, dropout_p=dropped, is_causal=is_causal, scale=self.scale
            )
        else:
            logits = self.scale * q @ k.transpose(-2, -1)
            bias = resolve_self_attn_mask(count, logits, attn_mask, is_causal)
            x = self.attn_drop(maybe_add_mask(logits, bias).softmax(dim=-1)) @ v
        x = x.transpose(1, 2).reshape(batch, count, self.attn_dim)
        return self.proj_drop(self.proj(self.norm(x)))


def dimensions(attention: Any) -> tuple[int, int, int]:
    """Heads, channels of a head's keys, and of its values."""
    return attention.num_heads, attention.head_dim, getattr(attention, "value_dim", attention.head_dim)
