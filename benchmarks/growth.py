"""Time per image over batch and image sizes, ours alone; options are passed on to ``mobilenet-ext bench``."""

import sys

from mobilenet_ext.cli import main

BATCHES = ("1", "2", "3", "4", "5", "7", "8", "16", "17", "32", "33", "64", "128")
SIZES = ("96", "160", "224", "320", "448", "640")

if __name__ == "__main__":
    alone = ["bench", "--model", "mobilenet_v2", "--rivals", "none"]
    status = main([*alone, "--batch", *BATCHES, *sys.argv[1:]])
    sizes = [word for size in SIZES for word in ("--size", size)]
    sys.exit(status or main([*alone, *sizes, "--batch", "1"]))
