"""Makes docs/models.md: for every network of the family what is fused, how far it is from float64, and how fast it is.

    python tools/models_table.py inspect                  # blocks and reasons of every model -> docs/models.json
    python tools/models_table.py measure [MODEL...]       # times (minutes a model), two threads -> docs/models.json
    python tools/models_table.py render                   # docs/models.json -> docs/models.md

``measure`` calls ``mobilenet-ext bench``, whose method is in docs/benchmarks.md; rivals that are not installed are left
out.  ``tests/test_models_table.py`` checks a sample of the table against the code.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA, TABLE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"
RIVALS = ("eager channels_last", "torch.compile", "onnxruntime")
BATCHES = (1, 8)

# By family, in the order of the table.
MODELS = {
    "MobileNetV1": ["timm:mobilenetv1_100"],
    "MobileNetV2": ["torchvision:mobilenet_v2", "timm:mobilenetv2_140"],
    "MobileNetV3": [
        "torchvision:mobilenet_v3_small",
        "torchvision:mobilenet_v3_large",
        "timm:mobilenetv3_large_100",
        "timm:tf_mobilenetv3_large_minimal_100",
    ],
    "MobileNetV4": [
        "timm:mobilenetv4_conv_small",
        "timm:mobilenetv4_conv_medium",
        "timm:mobilenetv4_conv_large",
        "timm:mobilenetv4_conv_aa_medium",
    ],
    "MNASNet": ["torchvision:mnasnet1_0", "timm:semnasnet_100"],
    "EfficientNet-Lite": ["timm:efficientnet_lite0", "timm:tf_efficientnet_lite0"],
    "EfficientNet": [
        "torchvision:efficientnet_b0",
        "torchvision:efficientnet_b1",
        "torchvision:efficientnet_b2",
        "torchvision:efficientnet_b3",
        "torchvision:efficientnet_b4",
        "timm:tf_efficientnet_b0",
    ],
    "EfficientNetV2": ["torchvision:efficientnet_v2_s", "timm:tf_efficientnetv2_b0", "timm:efficientnetv2_rw_t"],
    "MobileNet-EdgeTPU": ["timm:efficientnet_es", "timm:mobilenet_edgetpu_100", "timm:mobilenet_edgetpu_v2_s"],
    "LCNet": ["timm:lcnet_050", "timm:lcnet_100"],
    "Segmentation and detection": [
        "torchvision:lraspp_mobilenet_v3_large",
        "torchvision:deeplabv3_mobilenet_v3_large",
        "torchvision:ssdlite320_mobilenet_v3_large",
    ],
    "FBNet, MixNet": ["timm:fbnetc_100", "timm:mixnet_s"],
}


def names() -> list[str]:
    return [name for group in MODELS.values() for name in group]


def create(name: str) -> Any:
    """The model with random weights, in eval mode."""
    library, _, rest = name.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(rest).eval()
    from torchvision import models

    parts = ("lraspp", "deeplab", "ssdlite")
    options = {"weights_backbone": None} if rest.startswith(parts) else {}
    return models.get_model(rest, weights=None, **options).eval()


def inspect(name: str) -> dict[str, Any]:
    """Depthwise convolutions of a model, how many run in fused kernels, and why the others do not."""
    from torch import nn

    import mobilenet_ext

    model = create(name)
    found = [path for path, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]
    fused = mobilenet_ext.fuse(model)
    report = mobilenet_ext.fusion_report(fused)
    plain = [row for row in report.rows if not row.fused]
    reasons: Counter[str] = Counter()
    left: set[str] = set()
    for row in plain:
        inside = [path for path in found if path == row.path or path.startswith(row.path + ".")]
        left |= set(inside)
        if inside:
            reasons[re.sub(r"(?<![A-Za-z])\d+", "N", row.reason or "")] += len(inside)
    whole = hasattr(type(fused), "_plain_class")
    return {
        "whole": whole,
        "depthwise": len(found),
        "fused": len(found) - len(left),
        "kernels": sum(row.fused for row in report.rows),
        "pytorch": len(plain),
        "reasons": dict(reasons),
    }


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Milliseconds per image and the error against float64, by batch and contender."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "mobilenet_ext", "bench", "--model", name, "--threads", "2"]
        command += ["--batch", *map(str, BATCHES), "--rivals", ",".join(RIVALS), "--seconds", str(seconds)]
        run = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, check=False)
        if not out.exists():
            raise RuntimeError(f"{name}: {run.stderr.strip().splitlines()[-1:]}")
        data = json.loads(out.read_text())
    batches = {}
    for result in data["results"]:
        batches[str(result["batch"])] = {
            entry["name"]: {
                "ms": entry["milliseconds_per_image"],
                "error": entry["relative_error"],
                "speedup": entry["speedup"]["median"] if entry["speedup"] else None,
                "quiet": entry["quiet_speedup"]["median"] if entry["quiet_speedup"] else None,
            }
            for entry in result["entries"]
            if entry["status"] == "timed"
        }
    versions = {e["name"]: e["version"] for r in data["results"] for e in r["entries"]}
    machine = data["machine"]
    return {"batches": batches, "versions": versions, "machine": machine["cpu"], "isa": data["settings"]["isa"]}


def load() -> dict[str, Any]:
    return json.loads(DATA.read_text()) if DATA.exists() else {}


def save(data: dict[str, Any]) -> None:
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def _times(record: dict[str, Any], batch: int) -> Iterator[str]:
    entries = record.get("speed", {}).get("batches", {}).get(str(batch), {})
    ours = entries.get("mobilenet_ext")
    yield f"{ours['ms']:.2f}" if ours else "-"
    for rival in RIVALS:
        yield f"{entries[rival]['speedup']:.2f}" if entries.get(rival, {}).get("speedup") else "-"


def best(record: dict[str, Any], batch: int, which: str = "speedup") -> float | None:
    """How many times faster ours is than the best rival; ``which`` 'quiet': in quiet rounds."""
    entries = record.get("speed", {}).get("batches", {}).get(str(batch), {})
    ratios = [entries[rival][which] for rival in RIVALS if entries.get(rival, {}).get(which)]
    return min(ratios) if ratios else None


def _mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def render(data: dict[str, Any]) -> str:
    """The Markdown of docs/models.md."""
    lines = ["# Models", "", INTRODUCTION, ""]
    lines += ["| model | whole network | depthwise: fused / found | other layers in PyTorch | why not fused |"]
    lines += ["|---|---|---|---|---|"]
    for group, members in MODELS.items():
        lines.append(f"| **{group}** | | | | |")
        for name in members:
            record = data[name]
            reasons = "; ".join(f"{reason} ({count})" for reason, count in record["reasons"].items()) or ""
            yes = "yes" if record["whole"] else "block by block"
            lines.append(
                f"| `{name}` | {yes} | {record['fused']} / {record['depthwise']} | {record['pytorch']} | {reasons} |"
            )
    timed = [name for name in names() if data[name].get("speed")]
    if timed:
        speed = data[timed[-1]]["speed"]
        lines += ["", "## Speed and error", "", _method(speed), ""]
        head = " | ".join(
            f"batch {batch}: ms per image | {' | '.join(f'x {rival}' for rival in RIVALS)}" for batch in BATCHES
        )
        lines += [f"| model | largest error | {head} |", "|---" * (2 + len(BATCHES) * (1 + len(RIVALS))) + "|"]
        for name in timed:
            record = data[name]
            error = max(e["mobilenet_ext"]["error"] for e in record["speed"]["batches"].values())
            cells = [cell for batch in BATCHES for cell in _times(record, batch)]
            lines.append(f"| `{name}` | {error:.1e} | {' | '.join(cells)} |")
        means = [f"{_mean(b for n in timed if (b := best(data[n], batch))):.2f} at batch {batch}" for batch in BATCHES]
        quiet = [
            f"{_mean(found):.2f} at batch {batch} ({len(found)} of {len(timed)} models)"
            for batch in BATCHES
            if (found := [b for n in timed if (b := best(data[n], batch, "quiet"))])
        ]
        slower = [
            f"`{name}` at batch {batch} ({ratio:.2f})"
            for name in timed
            for batch in BATCHES
            if (ratio := best(data[name], batch)) is not None and ratio < 1
        ]
        lines += ["", f"Geometric mean over the best rival of each model: {', '.join(means)}."]
        if quiet:
            lines += [f"In quiet rounds, where there were five or more: {', '.join(quiet)}."]
        lines += ["", "Slower than the best rival:", "", *(f"- {line}" for line in slower or ["none"])]
    return "\n".join(lines) + "\n"


INTRODUCTION = """\
Made by `python tools/models_table.py`; [models.json](models.json) has the figures. Weights are random: what is fused
depends on a model's classes and settings alone. "Whole network" means that one operator call runs it from the image to
the logits; "block by block", that every block is a call of its own and the rest is PyTorch. A reason's number counts
depthwise convolutions."""


def _method(speed: dict[str, Any]) -> str:
    versions = ", ".join(dict.fromkeys(v for n, v in sorted(speed["versions"].items()) if n in RIVALS))
    return (
        f"`mobilenet-ext bench` at 224x224 in fp32 on two threads of an {speed['machine']} ({speed['isa']}), against\n"
        f"{versions}; see\n[benchmarks.md](benchmarks.md) for the method. `x` columns say how many times faster\n"
        "mobilenet_ext is; the error is the largest one against float64, relative to the largest output."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("inspect", "measure", "render"))
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each configuration")
    options = parser.parse_args()
    data = load()
    for name in options.models or names() if options.action != "render" else ():
        record = data.setdefault(name, {})
        if options.action == "inspect":
            record.update(inspect(name))
        else:
            record["speed"] = measure(name, options.seconds)
        save(data)
        print(name, flush=True)
    if options.action == "render":
        TABLE.write_text(render(data))


if __name__ == "__main__":
    main()
