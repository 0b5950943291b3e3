"""The forward pass of a model with the shapes of Llama-1B on 32 tokens: its time beside that of reading the weights,
from the page cache and from the disk, and its peak of anonymous memory. `python benchmarks/forward.py [FOLDER]`; the
model (2.5 GB) is made there."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from _measure import forget

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 128256, 2048, 8192, 16, 32, 8, 64
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def make(folder: Path) -> None:
    """Write the model, with random weights."""
    from safetensors.numpy import save_file

    source = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (source.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(VOCABULARY, WIDTH), "model.norm.weight": weight(WIDTH) + 1}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = weight(rows * HEAD_DIM, WIDTH)
        tensors[f"{at}.self_attn.o_proj.weight"] = weight(WIDTH, HEADS * HEAD_DIM)
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            tensors[f"{at}.mlp.{name}_proj.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = (weight(WIDTH) + 1).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def reading(path: Path) -> float:
    """Seconds to read a file once."""
    buffer = bytearray(1 << 24)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def once(folder: Path, source: str) -> float:
    """Seconds of a plain reading of the weights."""
    path = folder / "model.safetensors"
    if source == "disk":
        forget(path)
    return reading(path)


def forward(folder: Path, source: str) -> float:
    """Seconds of a forward pass; its processor time is printed."""
    import brainsurgery_jax as bs

    if source == "disk":
        forget(folder / "model.safetensors")
    start, cpu = time.perf_counter(), time.process_time()
    found = bs.compare_logits(folder, folder, tokens=32)
    took, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"from the {source}: a forward pass {took:.2f} s, {used:.2f} s of processor time; {found}")
    return took


def anonymous() -> float:
    """The anonymous memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def main() -> None:
    """Make the model if it is missing, and print the figures of three runs of each, in turn, and their medians."""
    import threading

    import brainsurgery_jax as bs

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    if not (folder / "config.json").is_file():
        make(folder)
    bs.compare_logits(folder, folder, tokens=2)  # compiles
    peak, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch, daemon=True)  # a failure below must end the process
    watcher.start()
    took: dict[str, list[tuple[float, float]]] = {"page cache": [], "disk": []}
    for _ in range(3):
        for source, found in took.items():
            found.append((once(folder, source), forward(folder, source)))
    done.set()
    watcher.join()
    for source, found in took.items():
        read, passed = (statistics.median(each) for each in zip(*found, strict=True))
        print(f"from the {source}, medians: reading {read:.2f} s, a forward pass {passed:.2f} s, {passed / read:.2f} x")
    print(f"peak of anonymous memory {peak[0]:.0f} MB")


if __name__ == "__main__":
    main()
