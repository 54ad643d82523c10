"""Our MobileNetV2 at every width and size against every rival; options are passed on to ``mobilenet-ext bench``."""

import os
import sys
from pathlib import Path

from mobilenet_ext.cli import main

ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.4)
SIZES = ("96", "128", "160", "192", "224", "320", "200x300")

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)  # where variants.py is
    models = [word for alpha in ALPHAS for word in ("--model", f"variants:v2_{alpha}")]
    sizes = [word for size in SIZES for word in ("--size", size)]
    sys.exit(main(["bench", *models, *sizes, "--batch", "1", "--rivals", "all", *sys.argv[1:]]))
