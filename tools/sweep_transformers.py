"""Runs smyrf in every model type of the installed transformers that can be built small.

Weights are random. In each model the outputs and gradients with smyrf, loaded with
attn_implementation="smyrf" and switched on by `enable` (`dense`, and `tree` at tolerance 0), are
compared with those of transformers' sdpa and eager attention, without padding and with padding on
either side. A process of its own runs each model, so that one that crashes or hangs costs one row.

    python tools/sweep_transformers.py --json results.json --markdown docs/transformers.md

The exit code is 1 if a model is silently wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

# Set before torch is imported; processes inherit it. Nothing is downloaded.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The fork server looks for what it preloads there.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from rich.console import Console
from rich.progress import Progress
from sweep import table

GIB = 2**30


def work(model_type: str, memory: int, pipe: Connection) -> None:
    """What a process does: one row."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    import torch
    from sweep import check

    torch.set_num_threads(1)
    check.count_calls()
    pipe.send(check.check(model_type).as_dict())


class Pool:
    """At most `jobs` processes at a time, each for one model type."""

    def __init__(self, jobs: int, seconds: float, memory: int) -> None:
        self.jobs, self.seconds, self.memory = jobs, seconds, memory
        self.context = multiprocessing.get_context("forkserver")
        # Imported once, and there in each process from the start.
        self.context.set_forkserver_preload(["sweep.check"])
        self.running: dict[Any, tuple[str, Any, float]] = {}

    def start(self, model_type: str) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(model_type, self.memory, sender))
        process.start()
        sender.close()
        self.running[receiver] = (model_type, process, time.monotonic())

    def finished(self) -> list[dict[str, Any]]:
        """Rows of processes that ended, died or were too slow; waits half a second for one."""
        ready = wait(list(self.running), timeout=0.5)
        rows = []
        for receiver, (model_type, process, began) in list(self.running.items()):
            late = time.monotonic() - began > self.seconds
            if receiver not in ready and not late:
                continue
            row = {"model_type": model_type, "verdict": "not built", "results": {}}
            if receiver in ready:
                try:
                    row = receiver.recv()
                except EOFError:
                    process.join()
                    row["why"] = f"the process ended with code {process.exitcode}"
                    row["crashed"] = True
            else:
                row["why"] = f"took more than {self.seconds:.0f} s"
            process.kill()
            process.join()
            row["seconds"] = round(time.monotonic() - began, 2)
            del self.running[receiver]
            rows.append(row)
        return rows

    def close(self) -> None:
        for _, process, _ in self.running.values():
            process.kill()
            process.join()


def sweep(names: list[str], pool: Pool, kept: dict[str, Any], file: Path | None) -> None:
    """Run model types, and keep each row in `kept` and in a file as soon as it is there."""
    waiting = collections.deque(names)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("models", total=len(names))
        try:
            while waiting or pool.running:
                while waiting and len(pool.running) < pool.jobs:
                    pool.start(waiting.popleft())
                for row in pool.finished():
                    kept[row["model_type"]] = row
                    progress.update(task, advance=1, description=row["model_type"])
                    if file is not None:
                        write(file, json.dumps(list(kept.values()), indent=1) + "\n")
        finally:
            pool.close()


def write(file: Path, text: str) -> None:
    """Write a whole file or nothing."""
    beside = file.with_name(file.name + ".part")
    beside.write_text(text)
    beside.replace(file)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit code 1: a model is silently wrong.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time; default: 1")
    parser.add_argument("--seconds", type=float, default=60, help="a model may take; default: 60")
    parser.add_argument("--memory", type=float, default=8, help="GiB a model may take; default: 8")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="rows; those that are there already are kept"
    )
    parser.add_argument("--again", action="store_true", help="run rows of the JSON file again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    from sweep import configs

    known = configs.types()
    unknown = sorted(set(given.only or ()) - set(known))
    if unknown:
        print(f"--only: transformers has no model types {', '.join(unknown)}", file=sys.stderr)
        return 2
    kept: dict[str, Any] = {}
    if given.json is not None and given.json.exists():
        kept = {row["model_type"]: row for row in json.loads(given.json.read_text())}
    names = [name for name in given.only or known if given.again or given.only or name not in kept]
    pool = Pool(given.jobs, given.seconds, int(given.memory * GIB))
    sweep(names, pool, kept, given.json)
    rows = [kept[name] for name in sorted(kept) if name in (given.only or known)]
    table.show(rows, Console())
    if given.markdown is not None:
        write(given.markdown, table.markdown(rows))
    return int(any(row["verdict"] == "WRONG" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
