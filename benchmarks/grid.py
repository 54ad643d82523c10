"""Our MobileNetV2 at every width and size against the engines, case by case; each is kept as it is done.

    python benchmarks/grid.py --out grid.jsonl [--batch N] [--threads N] [--seconds S] [--rivals LIST]

A second run with the same file goes on where the first one ended.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.4)
SIZES = ("96", "128", "160", "192", "224", "320", "200x300")


def measure(alpha: float, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Our time in ms, and how many times faster than the fastest rival, of which the name."""
    options = ["--batch", str(args.batch), "--threads", str(args.threads), "--seconds", str(args.seconds)]
    command = [
        sys.executable, "-m", "mobilenet_ext", "bench", "--model", f"variants:v2_{alpha}", "--size", size, *options,
        "--rivals", args.rivals, "--json", "-",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
    (result,) = json.loads(run.stdout)["results"]
    row: dict[str, Any] = {"alpha": alpha, "size": size, "ms": None, "rival": None, "speedup": None, "left_out": {}}
    for entry in result["entries"]:
        if entry["is_ours"]:
            row["ms"] = 1e3 * entry["timing"]["p50"]
        elif entry["status"] != "timed":
            row["left_out"][entry["name"]] = entry["reason"]
        elif row["speedup"] is None or entry["speedup"]["median"] < row["speedup"]["median"]:
            row["rival"], row["speedup"] = entry["name"], entry["speedup"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines, one a case")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="time of the rounds of a case")
    parser.add_argument("--rivals", default="onnxruntime,openvino,executorch")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(row["alpha"], row["size"]) for row in rows}
    cases = [(alpha, size) for alpha in ALPHAS for size in SIZES if (alpha, size) not in done]
    for i, (alpha, size) in enumerate(cases):
        print(f"{i + 1}/{len(cases)} alpha {alpha} size {size}", file=sys.stderr, flush=True)
        rows.append(measure(alpha, size, args))
        with args.out.open("a") as out:
            out.write(json.dumps(rows[-1]) + "\n")
    table = Table("alpha", "size", "ms", "x the fastest rival", "which")
    for row in rows:
        speedup = row["speedup"]
        text = f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]" if speedup else "-"
        style = "red" if speedup and speedup["median"] < 1 else ""
        table.add_row(str(row["alpha"]), row["size"], f"{row['ms']:.2f}", text, row["rival"] or "-", style=style)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    ratios = [row["speedup"]["median"] for row in rows if row["speedup"]]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        console.print(f"geometric mean {mean:.2f}, least {min(ratios):.2f}, {len(ratios)} cases")


if __name__ == "__main__":
    main()
