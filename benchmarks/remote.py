"""A copy of 2 GB from a web server on this machine beside curl, and what a plan over 1 % of it fetches.

    python benchmarks/remote.py [GB]

The server sends files by `sendfile`, in a process of its own. `curl` writes each file to the same disk. Both end when
the bytes are flushed. Rounds alternate; the median of each counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, Queue
from pathlib import Path
from statistics import median

import numpy as np

ROUNDS, SHARDS, TENSORS, WIDTH = 3, 4, 25, 4096


class Ranges(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with open("." + self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            wanted = self.headers.get("Range")
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-")) if wanted else (0, size - 1)
            last = min(last, size - 1)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            self.wfile.flush()
            at = first
            while at <= last:
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, last + 1 - at)
        with open("sent.log", "a") as log:
            log.write(f"{last - first + 1}\n")

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(folder: str, ready: Queue) -> None:
    os.chdir(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    ready.put(server.server_address[1])
    server.serve_forever()


def make(folder: Path, gigabytes: float) -> list[str]:
    from safetensors.numpy import save_file

    rows = int(gigabytes * 1e9 / (SHARDS * TENSORS * WIDTH * 4))
    weight_map = {}
    for shard in range(1, SHARDS + 1):
        name = f"model-{shard:05d}-of-{SHARDS:05d}.safetensors"
        source = np.random.default_rng(shard)
        tensors = {f"layers.{shard}.{i}.w": source.random((rows, WIDTH), np.float32) for i in range(TENSORS)}
        save_file(tensors, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sorted(set(weight_map.values()))


def timed(*commands: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of commands, one after the other."""
    before, start = os.times(), time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main() -> None:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        folder, out = Path(place, "served"), Path(place, "out")
        folder.mkdir()
        files = make(folder, gigabytes)
        ready: Queue = Queue()
        process = Process(target=serve, args=(str(folder), ready), daemon=True)
        process.start()
        url = f"http://127.0.0.1:{ready.get()}/"
        index = f"{url}model.safetensors.index.json"
        plans = {"all": ".*", "1 %": r"layers\.1\.0\.w"}
        for name, kept in plans.items():
            steps = [{"delete": {"target": f"(?!{kept}$).*"}}] if name != "all" else []
            plan = {"inputs": [f"base::{index}"], "transforms": steps, "output": {"path": str(out), "shard": "1GB"}}
            Path(place, f"{name}.yaml").write_text(json.dumps(plan))
        tool = Path(sys.executable).parent / "brainsurgery-jax"
        rounds = []
        for _ in range(ROUNDS):
            fetched = [["curl", "-sS", "-o", str(Path(place, "curl")), url + name] for name in files]
            flush = ["sync", str(Path(place, "curl"))]
            theirs = timed(*(command for fetch in fetched for command in (fetch, flush)))
            ours = timed([str(tool), "run", "--overwrite", "--quiet", str(Path(place, "all.yaml"))])
            rounds.append((theirs, ours))
        log = folder / "sent.log"
        log.write_text("")
        timed([str(tool), "run", "--overwrite", "--quiet", str(Path(place, "1 %.yaml"))])
        sent = sum(map(int, log.read_text().split()))
        total = sum((folder / name).stat().st_size for name in files)
        theirs, ours = zip(*rounds, strict=True)
        (curl, curl_cpu), (wall, cpu) = (tuple(map(median, zip(*side, strict=True))) for side in (theirs, ours))
        row = {
            "gigabytes": round(total / 1e9, 2), "curl_seconds": round(curl, 2), "curl_cpu": round(curl_cpu, 2),
            "our_seconds": round(wall, 2), "our_cpu": round(cpu, 2), "speed_beside_curl": round(curl / wall, 2),
            "part_wanted": round(1 / (SHARDS * TENSORS), 4), "part_fetched": round(sent / total, 4),
        }  # fmt: skip
        print(json.dumps(row))
        process.terminate()


if __name__ == "__main__":
    main()
