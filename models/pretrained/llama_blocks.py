"""Names of LlamaGen's blocks, which many families share."""

from __future__ import annotations

from tokenloom.models.pretrained.names import Rename, Rule


def llama_blocks(official: str = "layers.", ours: str = "net.", norm: str = "norm.weight", output: str = "output.weight") -> list[Rule]:
    """Blocks, last norm and output map; ``norm`` and ``output`` are the official names of the last two."""
    return [
        Rename(f"{official}{{i}}.attention.wqkv.weight", f"{ours}attention.{{i}}.qkv.weight"),
        Rename(f"{official}{{i}}.attention.wo.weight", f"{ours}attention.{{i}}.proj.weight"),
        Rename(f"{official}{{i}}.feed_forward.w1.weight", f"{ours}mlp.{{i}}.gate.weight"),
        Rename(f"{official}{{i}}.feed_forward.w3.weight", f"{ours}mlp.{{i}}.up.weight"),
        Rename(f"{official}{{i}}.feed_forward.w2.weight", f"{ours}mlp.{{i}}.out.weight"),
        Rename(f"{official}{{i}}.attention_norm.weight", f"{ours}norm.branches.{{i}}.0.weight"),
        Rename(f"{official}{{i}}.ffn_norm.weight", f"{ours}norm.branches.{{i}}.1.weight"),
        Rename(norm, f"{ours}norm.final.weight"),
        Rename(output, "head.out.weight"),
    ]
