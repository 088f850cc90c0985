"""What a linear layer is, told from its path.

A recipe may say `kind = "mamba.out_proj"` and mean that projection in any model. The kind follows
from the layer's own name and from the nearest name around it that says mamba, attention or MLP,
by the frozen table below: the names of our models, of Flax's own layers, and of the Flax ports
one meets most often (`q_proj`, `wi_0`). A path not in the table has no kind, and no rule by kind
matches it.
"""

from __future__ import annotations

import re

# kind -> (a word in the name of the mixer, the names of the layer inside it)
TABLE: dict[str, tuple[str, str]] = {
    "mamba.in_proj": ("mamba", "in_proj"),
    "mamba.out_proj": ("mamba", "out_proj"),
    "attention.qkv": (
        "attention",
        "q k v query key value qkv q_proj k_proj v_proj qkv_proj to_q to_k to_v to_qkv",
    ),
    "attention.out": ("attention", "o out o_proj out_proj to_out"),
    "mlp.up": ("mlp", "up gate up_proj gate_proj gate_up_proj wi wi_0 wi_1 fc1 dense_0 linear1"),
    "mlp.down": ("mlp", "down down_proj wo fc2 dense_1 linear2"),
}
KINDS = tuple(TABLE)

_MIXER = {
    "mamba": r"mamba",
    "attention": r"attention|attn|mha",
    "mlp": r"mlp|ffn|feed_?forward",
}
_KIND = {(mixer, name): kind for kind, (mixer, names) in TABLE.items() for name in names.split()}


def kind_of(path: str) -> str | None:
    """The kind of the layer at `path`, None if the table does not know it.

    `blocks_3/mamba/out_proj` is `mamba.out_proj`;
    `layer_0/MultiHeadDotProductAttention_0/query` is `attention.qkv`.
    """
    *around, name = path.lower().split("/")
    for component in reversed(around):
        for mixer, words in _MIXER.items():
            if re.search(words, component):
                return _KIND.get((mixer, name))
    return None
