"""Fine-tune a MobileNet on scikit-learn's handwritten digits, plain or fused, frozen or batch-statistics BatchNorm.

    python examples/fine_tune.py --compare
    python examples/fine_tune.py --norm batch --seeds 0 1 2 --curve curve.json
    torchrun --nproc-per-node 2 examples/fine_tune.py

Needs scikit-learn and rich.  The model is EfficientNet-Lite0 with real weights where the packages of the extra ``demo``
are installed, else MobileNetV2 with random ones.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import Progress
from sklearn.datasets import load_digits
from torch import Tensor, nn

import mobilenet_ext
from mobilenet_ext import loading


def digits(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (N, 3, size, size) in channels_last and their labels: 1437 and 360 of them."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def make_model(name: str | None, seed: int) -> nn.Module:
    """A network with ten classes."""
    torch.manual_seed(seed)
    names = [name] if name else ["pretrained:efficientnet_lite0", "reference:v2"]
    for candidate in names:
        try:
            model = loading.load(candidate, seed=seed)
            break
        except loading.LoadError:
            if candidate == names[-1]:
                raise
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    path, last = layers[-1]
    parent = model.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], nn.Linear(last.in_features, 10))
    return model.to(memory_format=torch.channels_last)


def set_modes(model: nn.Module, norm: str) -> None:
    model.train()
    for module in model.modules():
        if norm == "frozen" and isinstance(module, nn.BatchNorm2d):
            module.eval()


def memory(name: str) -> float:
    """A line of /proc/self/status in MB: VmRSS is the memory now, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name + ":")).split()[1]) / 1024


def run(args: argparse.Namespace, fused: bool, seed: int) -> dict[str, object]:
    """One training: accuracy on the test images, median time of a step, peak memory above the start, the losses."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    x, y, test_x, test_y = digits(args.size)
    model = make_model(args.model, seed)
    if fused:
        model = mobilenet_ext.fuse(model)
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier run left with the allocator would hide the peak of this one
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is there now
    before = memory("VmRSS")
    optimizer = torch.optim.SGD(model.parameters(), args.rate, momentum=0.9)
    losses: list[float] = []
    times: list[float] = []
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(y) // (args.batch * world)
    with Progress(disable=rank > 0) as progress:
        task = progress.add_task(f"{'fused' if fused else 'plain'}, seed {seed}", total=args.epochs * per_epoch)
        for _ in range(args.epochs):
            set_modes(model, args.norm)
            order = torch.randperm(len(y), generator=generator)[rank::world]
            for index in order.split(args.batch)[:per_epoch]:
                start = time.perf_counter()
                optimizer.zero_grad()
                loss = F.cross_entropy(wrapped(x[index]), y[index])
                loss.backward()
                optimizer.step()
                times.append(time.perf_counter() - start)
                losses.append(loss.item())
                progress.update(task, advance=1, description=f"{'fused' if fused else 'plain'} loss {losses[-1]:.3f}")
    peak = memory("VmHWM") - before
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(a).argmax(1) == b).sum()) for a, b in zip(test_x.split(60), test_y.split(60), strict=True)
        )
    return {
        "form": "fused" if fused else "plain",
        "norm": args.norm,
        "seed": seed,
        "accuracy": right / len(test_y),
        "step_ms": 1e3 * sorted(times)[len(times) // 2],
        "peak_mb": peak,
        "losses": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="as mobilenet-ext takes it (default: what is installed)")
    parser.add_argument(
        "--norm", choices=("frozen", "batch"), default="batch", help="BatchNorm; frozen needs trained weights"
    )
    parser.add_argument("--plain", action="store_true", help="without fusing")
    parser.add_argument("--compare", action="store_true", help="plain and fused, one after the other")
    parser.add_argument("--size", type=int, default=64, help="side of the upscaled images in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, help="learning rate (default: 0.01, with frozen BatchNorm 0.001)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--curve", type=Path, help="write results and loss curves as JSON")
    args = parser.parse_args()
    args.rate = args.rate or (0.001 if args.norm == "frozen" else 0.01)
    distributed = dist.is_torchelastic_launched()
    if distributed:
        dist.init_process_group("gloo")
    results = []
    for seed in args.seeds:
        for fused in (False, True) if args.compare else (not args.plain,):
            results.append(run(args, fused, seed))
            if not distributed or dist.get_rank() == 0:
                row = results[-1]
                print(
                    f"{row['form']} {row['norm']} seed {seed}: accuracy {row['accuracy']:.3f}, "
                    f"{row['step_ms']:.0f} ms a step, peak {row['peak_mb']:.0f} MB"
                )
    if args.curve and (not distributed or dist.get_rank() == 0):
        args.curve.write_text(json.dumps(results, indent=1) + "\n")
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
