"""On a GPU: MobileNetV2 and V1 and single layers, or what the options of ``mobilenet-ext bench --device cuda`` say."""

import argparse
import sys

from mobilenet_ext.cli import main

EVERYTHING = "--model reference:v2 --model reference:v1 --kernels depthwise block --dtype fp16 bf16 fp32 --batch 1 64"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json")  # goes with both
    known, options = parser.parse_known_args()
    figures = ["--json", known.json] if known.json else []
    sys.exit(main(["bench", "--device", "cuda", *(options or EVERYTHING.split()), *figures]))
