"""Runs mergekit on every `*.yml` of the current folder, in an environment of its own: `NAME.yml` gives `theirs-NAME/`,
or `theirs-NAME.txt` with what it says of a configuration that it refuses."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration  # pyright: ignore[reportMissingImports]
from mergekit.merge import MergeOptions, run_merge  # pyright: ignore[reportMissingImports]


def main() -> None:
    torch.set_num_threads(1)
    for file in sorted(Path().glob("*.yml")):
        out = f"theirs-{file.stem}"
        try:
            config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
            run_merge(config, out_path=out, options=MergeOptions(copy_tokenizer=False, random_seed=1))
        except Exception as error:  # whatever it is, it is what mergekit says
            Path(f"{out}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
