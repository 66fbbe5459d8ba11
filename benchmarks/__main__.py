"""All benchmarks by one command: `python benchmarks`. Each prints a table; `--quick` shows only that all of them run.

python benchmarks training cold         only these
python benchmarks --list                what there is
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
# The file and what it is called with, each a table of its own
TABLES = {
    "prepare": [[]],
    "sentences": [[]],
    "hygiene": [[]],
    "perplexity": [[]],
    "training": [[], ["--data", "text"], ["--quantization", "4bit"], ["--model", "50m"], ["--model", "50m", "--data", "text"], ["--memory"], ["--profile"]],
    "callbacks": [[]],
    "memory": [[]],
    "cold": [[]],
    "long_run": [[]],
    "gpu": [[]],
}  # fmt: skip


def about() -> str:
    """The machine and the versions that a table is of."""
    names = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "trl", "liger-kernel", "flash-attn")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, {', '.join(versions)}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of the tables; all without")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(name for name in TABLES if (HERE / f"{name}.py").is_file()))
        return 0
    if unknown := [name for name in options.names if name not in TABLES]:
        parser.error(f"no table is called {', '.join(unknown)}; there are {', '.join(TABLES)}")
    print(about(), flush=True)
    failed = []
    for name in options.names or [name for name in TABLES if (HERE / f"{name}.py").is_file()]:
        for arguments in TABLES[name][:1] if options.quick else TABLES[name]:
            quick = ["--toy" if name == "gpu" else "--quick"] if options.quick else []
            print(f"\n## {' '.join([name, *arguments])}\n", flush=True)
            if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments, *quick]).returncode:
                failed.append(name)
    print(f"\nWithout a table: {', '.join(failed)}" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
