"""How long do merges of 1B models take, and in how much memory, beside mergekit in the same run?

Three bfloat16 models with the shapes of Llama 3.2 1B. mergekit is looked for in `.venv-mergekit`, where `make mergekit`
installs it, or at BENCH_MERGEKIT. That is an environment of its own, and so should be ours (`pip install .`): among 200
packages JAX takes longer to import. mergekit does not wait until its files are on the disk, and we do not with
`--no-fsync`. Its ties takes minutes: that is measured once, and anew with BENCH_AGAIN. The floor is what reading the
models and writing the bytes of one takes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _answer import answer
from _checkpoints import DATA, SMALL, checkpoint, files, nbytes, shown
from _jobs import Job, check_job, plan_job, script_job
from safetensors import safe_open

METHODS: Mapping[str, Mapping[str, float]] = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.5},
    "ties": {"weight": 1, "density": 0.5},
    "task_arithmetic": {"weight": 0.5},
}
"""The methods, and the parameters of each model (of slerp: of all)."""
SLOW = frozenset({"ties"})
"""Methods that take mergekit minutes."""
ALONE = frozenset({"linear", "slerp"})
"""Methods over two models, the base among them."""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 2 if SMALL else 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
MERGEKIT = Path(os.environ.get("BENCH_MERGEKIT", Path(__file__).parents[1] / ".venv-mergekit/bin/mergekit-yaml"))


def models() -> dict[str, Path]:
    """The base and two models trained from it."""
    return {
        "base": checkpoint("llama"),
        "a": checkpoint("llama", tuned=True),
        "b": checkpoint("llama", tuned=True, at=2),
    }


def ours(method: str, given: Mapping[str, Path], options: Sequence[str] = ()) -> Job:
    """The same merge as a plan."""
    used: Mapping[str, Any] = {"base": given["base"], "a": given["a"]} if method in ALONE else given
    return plan_job(f"merge_{method}", options, **used)


def theirs(method: str, given: Mapping[str, Path]) -> Job:
    """mergekit on the same models, with its own settings for a processor."""
    names = [name for name in given if method not in ALONE or name != "b"]
    folders = {name: str(_as_theirs(given[name])) for name in names}
    merged = [name for name in names if method in ALONE or name != "base"]
    config: dict[str, object] = {"merge_method": method, "dtype": "bfloat16", "out_dtype": "bfloat16"}
    if method == "slerp":
        config |= {"models": [{"model": folders[n]} for n in merged], "parameters": dict(METHODS[method])}
    else:
        config["models"] = [{"model": folders[n], "parameters": dict(METHODS[method])} for n in merged]
    if method != "linear":
        config["base_model"] = folders["base"]
    path = DATA / f"mergekit-{method}.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    command = (str(MERGEKIT), str(path), str(DATA / "out-mergekit"), "--no-copy-tokenizer")
    return Job("peer", command, tuple(given[n] for n in names), once=method in SLOW)


def _as_theirs(folder: Path) -> Path:
    """The same checkpoint with the files that mergekit wants: a config, and an index of the shards."""
    made = DATA / f"mergekit-{folder.name}"
    made.mkdir(exist_ok=True)
    places: dict[str, str] = {}
    for shard in files(folder):
        if not (made / shard.name).exists():
            (made / shard.name).symlink_to(shard)
        with safe_open(shard, "numpy") as opened:
            places |= dict.fromkeys(opened.keys(), shard.name)
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


if __name__ == "__main__":
    if not MERGEKIT.exists():
        sys.exit(f"no mergekit at {MERGEKIT}: `make mergekit` installs it")
    given = models()
    jobs = {
        "check": check_job("merge_ties", **given),
        "floor, two models": script_job("floor", given["base"], given["a"]),
        "floor, three models": script_job("floor", *given.values()),
    }
    for each in METHODS:
        jobs[each] = ours(each, given)
        jobs[f"{each}, no fsync"] = ours(each, given, ["--no-fsync"])
        jobs[f"mergekit, {each}"] = theirs(each, given)
    answer("merge", f"merges of 1B models, {shown(nbytes(given['base']))} each", jobs)
