"""On a GPU: MobileNetV2 and single layers; options are passed on to ``mobilenet-ext bench --device cuda``."""

import sys

from mobilenet_ext.cli import main

if __name__ == "__main__":
    options = sys.argv[1:] or [
        "--kernels",
        "depthwise",
        "block",
        "--dtype",
        "fp16",
        "bf16",
        "fp32",
        "--batch",
        "1",
        "64",
    ]
    networks = [] if sys.argv[1:] else ["--model", "reference:v2", "--model", "reference:v1"]
    sys.exit(main(["bench", "--device", "cuda", *networks, *options]))
