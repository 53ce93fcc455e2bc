"""Instructions of hot kernels: these counts repeat where a shared machine's clock does not.

Each case is one call on one thread in a process of its own (benchmarks/instructions.cc), under
valgrind. That knows no AVX-512, so on x86 these are the kernels for AVX2. It needs Debian's package
valgrind and the programs of the preset `release`. With --compare it exits with 1 where a case grew
by more than 1 %.

    python benchmarks/instructions.py --write before.json
    python benchmarks/instructions.py --compare before.json
    python benchmarks/instructions.py --only dense tree_plan
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from printing import Printer

PROGRAM = Path(__file__).parent.parent / "build" / "release" / "benchmarks" / "smyrf_instructions"
GROWTH = 1.01


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """What it printed; ends the program with its message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"instructions.py: failed ({done.returncode}): {' '.join(command)}\n{done.stderr}")
    return done


def count(program: Path, case: str) -> tuple[str, int]:
    """Instruction set and instructions of one case."""
    done = run(
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--collect-atstart=no",
        "--toggle-collect=smyrf_measured",
        str(program),
        case,
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None or int(collected[1]) == 0:
        sys.exit(f"instructions.py: valgrind counted nothing for {case}:\n{done.stderr}")
    return done.stdout.strip(), int(collected[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="CASE", help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="store the counts as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="counts stored before")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="default: %(default)s")
    parser.add_argument("--markdown", action="store_true", help="plain markdown tables")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("instructions.py: needs valgrind; on Debian and Ubuntu: apt-get install valgrind")
    if not arguments.program.exists():
        sys.exit(
            f"instructions.py: {arguments.program} is missing; build it: "
            "cmake --preset release && cmake --build --preset release"
        )
    before = json.loads(arguments.compare.read_text()) if arguments.compare else {}

    cases = run(str(arguments.program)).stdout.split()
    unknown = set(arguments.only or ()) - set(cases)
    if unknown:
        sys.exit(f"instructions.py: no case {', '.join(unknown)}; there are {', '.join(cases)}")
    cases = [case for case in cases if not arguments.only or case in arguments.only]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counted = list(pool.map(lambda case: count(arguments.program, case), cases))
    counts = {case: instructions for case, (_, instructions) in zip(cases, counted, strict=True)}
    sets = {name for name, _ in counted}

    if before and before["instruction_set"] not in sets:
        sys.exit(
            f"instructions.py: {arguments.compare} counts {before['instruction_set']}, "
            f"this machine {', '.join(sets)}; compare on one machine"
        )
    stored = before.get("instructions", {})
    ratios = {case: counts[case] / stored[case] for case in counts if case in stored}
    printer = Printer(arguments.markdown)
    columns = ["case ", "instructions", *(["before", "ratio"] if before else [])]
    rows = [[case, f"{instructions:,}"] for case, instructions in counts.items()]
    for row in rows if before else []:
        row += [f"{stored[row[0]]:,}", f"{ratios[row[0]]:.4f}"] if row[0] in stored else ["-", "-"]
    printer.table(f"Instructions, one thread, {', '.join(sets)}", columns, rows)
    if arguments.write:
        stored = {"instruction_set": sets.pop(), "instructions": counts}
        arguments.write.write_text(json.dumps(stored, indent=2) + "\n")
    grown = [case for case, ratio in ratios.items() if ratio > GROWTH]
    if grown:
        sys.exit(f"instructions.py: grew by more than 1 %: {', '.join(grown)}")


if __name__ == "__main__":
    main()
