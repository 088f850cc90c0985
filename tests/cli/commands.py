"""Malformed command lines, and what the one message must say.

Each case: the words after `nvfp4`, and parts of the message, the place first, then the remedy.
`{tmp}` stands for a fresh folder that holds `file.txt`, `model.json` (malformed), `lines.jsonl`
(whose second line is none), `empty/` and `half/` (a shard and no manifest).
"""

from __future__ import annotations

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "no-command": ("", ("no command", "'train'")),
    "unknown-command": ("trian --workdir {tmp}/run", ("'trian'", "did you mean 'train'?")),
    "flag-for-command": ("--workdir {tmp}/run", ("unknown command '--workdir'", "'train'")),
    "no-workdir": ("train", ("--workdir PATH", "required")),
    "misspelt-flag": ("train --workdir {tmp}/run --stps 3", ("--stps", "--steps INT")),
    "extra-word": ("train --workdir {tmp}/run nvfp4", ("nvfp4", "--help")),
    "no-value": ("train --workdir {tmp}/run --steps", ("--steps", "Expected 1")),
    "not-a-number": ("train --workdir {tmp}/run --steps many", ("--steps", "'many'", "INT")),
    "fraction-of-a-step": ("train --workdir {tmp}/run --steps 1.5", ("--steps", "'1.5'", "INT")),
    "no-steps": ("train --workdir {tmp}/run --steps 0", ("--steps 0", "at least 1")),
    "negative-seed": ("train --workdir {tmp}/run --seed -1", ("--seed -1", "from 0 to")),
    "ragged-microbatches": (
        "train --workdir {tmp}/run --batch 8 --microbatches 3",
        ("--microbatches 3", "does not divide --batch 8"),
    ),
    "learning-rate": (
        "train --workdir {tmp}/run --learning-rate -1",
        ("--learning-rate -1", "positive"),
    ),
    "decay-fraction": (
        "train --workdir {tmp}/run --decay-fraction 1.2",
        ("--decay-fraction 1.2", "from 0 to 1"),
    ),
    "warmup-and-decay": (
        "train --workdir {tmp}/run --steps 10 --warmup 9 --decay-fraction 0.5",
        ("--warmup 9", "exceed --steps 10", "lower one"),
    ),
    "unknown-choice": ("train --workdir {tmp}/run --remat blocks", ("--remat", "'block'")),
    "unknown-model": (
        "train --workdir {tmp}/run --model tny",
        ("--model tny", "did you mean 'tiny'?"),
    ),
    "malformed-model": (
        "train --workdir {tmp}/run --model {tmp}/model.json",
        ("model.json", "'hiden'", "did you mean 'hidden'?"),
    ),
    "recipe-for-nobody": (
        "train --workdir {tmp}/run --recipe nvfp4-12b",
        ("--recipe nvfp4-12b quantizes none of the 21", "--recipe bf16"),
    ),
    "unknown-recipe": (
        "train --workdir {tmp}/run --recipe nvpf4",
        ("nvpf4", "did you mean 'nvfp4'?"),
    ),
    "recipe-for-another-model": (
        "train --workdir {tmp}/run --recipe {tmp}/recipe.toml",
        ("recipe.toml", "rule 1", "index"),
    ),
    "missing-data": (
        "train --workdir {tmp}/run --data {tmp}/missing",
        ("--data", "missing: does not exist", "give a folder"),
    ),
    "empty-data": (
        "train --workdir {tmp}/run --data {tmp}/empty",
        ("--data", "holds no files", "put UTF-8 text files"),
    ),
    "half-made-data": (
        "train --workdir {tmp}/run --data {tmp}/half",
        ("half: token shards without a manifest.json", "prepare it again"),
    ),
    "data-nothing": ("data", ("Expected one of", "prepare", "--help")),
    "data-no-source": ("data prepare --out {tmp}/out", ("name a source", "debian-docs")),
    "data-missing": (
        "data prepare {tmp}/missing --out {tmp}/out",
        ("missing: no such folder or file", "give a folder"),
    ),
    "data-no-json": (
        "data prepare {tmp}/lines.jsonl --out {tmp}/out",
        ("lines.jsonl, line 2: not JSON", "mend or remove the line"),
    ),
    "data-field": (
        "data prepare {tmp}/lines.jsonl --field body --out {tmp}/out",
        ("lines.jsonl, line 1: no field 'body'; it has text", "choose by --field"),
    ),
    "data-out": (
        "data prepare {tmp}/lines.jsonl --out {tmp}/file.txt",
        ("--out", "it is a file", "give a folder"),
    ),
    "data-vocabulary": (
        "data prepare {tmp}/lines.jsonl --out {tmp}/out --vocabulary 9",
        ("--vocabulary 9", "at least 257"),
    ),
    "data-verify": ("data verify {tmp}/empty", ("empty: no prepared folder", "data prepare")),
    "file-for-workdir": (
        "train --workdir {tmp}/file.txt",
        ("--workdir", "is a file", "give a folder"),
    ),
    "below-a-file": (
        "train --workdir {tmp}/file.txt/run",
        ("--workdir", "file.txt is a file", "give a folder"),
    ),
    "plan-gpu": ("plan --gpu b100 --gpus 8", ("--gpu b100", "'b200'")),
    "plan-neither": ("plan", ("--gpus 64", "--mesh data=8,fsdp=8")),
    "plan-both": ("plan --gpus 8 --mesh fsdp=4", ("--gpus 8", "fsdp=4 has 4", "leave one out")),
    "plan-mesh": ("plan --mesh fdsp=4", ("--mesh fdsp=4", "did you mean 'fsdp'?")),
    "plan-rows": ("plan --mesh data=64 --batch 736", ("--mesh data=64", "736", "multiple of 64")),
    "plan-no-mesh": ("plan --gpus 7 --batch 8", ("7 GPUs", "--batch 8", "multiple of 7")),
    "plan-tokens": ("plan --gpus 8 --tokens 0", ("--tokens 0", "positive")),
    "plan-model": ("plan --gpus 8 --model nano-12b", ("--model nano-12b", "'nano-12b-v2'")),
    "explain-model": ("explain --model nano-12b", ("--model nano-12b", "'nano-12b-v2'")),
    "explain-recipe": ("explain --recipe mxfp5", ("mxfp5", "did you mean 'mxfp4'?")),
    "explain-gpu": ("explain --compiled --gpu b100", ("no GPU is called 'b100'", "'b200'")),
    "explain-gpu-alone": ("explain --gpu b200", ("--gpu has no effect without --compiled",)),
    "explain-gpu-empty": ("explain --compiled --gpu=", ("no GPU is called ''",)),
    "explain-batch": ("explain --compiled --batch 0", ("--batch 0", "at least 1")),
    "explain-length": ("explain --compiled --length -3", ("--length -3", "at least 1")),
    "explain-microbatches": (
        "explain --compiled --batch 7 --microbatches 2",
        ("--microbatches 2 does not divide --batch 7",),
    ),
    "explain-remat-alone": ("explain --remat block", ("--remat", "--compiled")),
    "explain-flag": ("explain --jsn", ("--jsn", "--json")),
    "explain-negative": ("explain --no-json", ("--no-json", "--json")),
    "compare-one": ("compare bf16 --workdir {tmp}/run", ("two recipes or more", "bf16 nvfp4")),
    "compare-twice": ("compare bf16 bf16 --workdir {tmp}/run", ("two recipes", "'bf16'")),
    "compare-unknown": (
        "compare bf16 nvfp --workdir {tmp}/run",
        ("nvfp", "did you mean 'nvfp4'?"),
    ),
    "compare-seeds": (
        "compare bf16 nvfp4 --seeds 0 --workdir {tmp}/run",
        ("--seeds 0", "at least 1"),
    ),
    "bench-nothing": ("bench", ("Expected one of", "linear", "--help")),
    "bench-flag": ("bench --rounds 3", ("Expected one of", "linear", "nvfp4 bench --help")),
    "bench-misspelt": ("bench linear --roundz 3", ("--rounds", "nvfp4 bench linear --help")),
    "bench-unknown": ("bench liner", ("liner", "linear", "--help")),
    "bench-shape": ("bench linear --shapes 64x64", ("--shapes 64x64", "TOKENSxINxOUT")),
    "bench-empty-shape": ("bench linear --shapes 64x0x64", ("--shapes 64x0x64", "such as 4096")),
    "bench-part": ("bench linear --parts forward", ("--parts", "'forward'", "fprop")),
    "bench-precision": (
        "bench linear --precision nvpf4",
        ("--precision nvpf4", "did you mean 'nvfp4'?"),
    ),
    "bench-several": (
        "bench linear --recipe nemotron-3",
        ("--recipe nemotron-3", "nvfp4, mxfp8", "--precision"),
    ),
    "bench-recipe": ("bench linear --recipe bf16", ("--recipe bf16", "quantizes nothing")),
    "bench-implementation": (
        "bench quantizers --implementation tritn",
        ("--implementation tritn", "did you mean 'triton'?"),
    ),
    "bench-no-gpu": (
        "bench linear --implementation triton --json {tmp}/bench.json",
        ("--implementation triton", "JAX sees none"),
    ),
    "bench-size": ("bench quantizers --sizes 8192", ("--sizes 8192", "ROWSxCOLUMNS")),
    "bench-case": ("bench quantizers --cases nerest", ("--cases nerest", "'nearest'")),
    "bench-rounds": ("bench quantizers --rounds 0", ("--rounds 0", "at least 1")),
    "bench-calls": ("bench quantizers --calls -1", ("--calls -1", "at least 1")),
    "bench-model": ("bench memory --model tny", ("--model tny", "did you mean 'tiny'?")),
    "bench-memory-recipe": ("bench memory --recipe nvfp", ("nvfp", "did you mean 'nvfp4'?")),
    "bench-length": ("bench memory --length 0", ("--length 0", "at least 1")),
    "bench-step-model": ("bench step --models tiny 1bb", ("--model 1bb", "did you mean '1b'?")),
    "bench-step-recipe": ("bench step --recipe nvfp", ("nvfp", "did you mean 'nvfp4'?")),
    "bench-json-folder": ("bench memory --json {tmp}/empty", ("--json", "is a folder", "a file")),
    "bench-json-nowhere": (
        "bench memory --json {tmp}/nowhere/bench.json",
        ("--json", "does not exist", "make it"),
    ),
    "bench-all-json": ("bench all", ("--json PATH", "required")),
}

MALFORMED_MODEL = '{"pattern": "M-", "hiden": 16}'
RECIPE_FOR_ANOTHER_MODEL = """\
[[rule]]
blocks = { index = [50] }
precision = "bf16"
[[rule]]
match = "**"
precision = "bf16"
"""
