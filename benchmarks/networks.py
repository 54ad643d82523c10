"""Whole networks against every rival; options are passed on to ``mobilenet-ext bench``."""

import sys

from mobilenet_ext.cli import main

NETWORKS = ("mobilenet_v2", "timm:mobilenetv1_100", "timm:efficientnet_lite0")

if __name__ == "__main__":
    models = [word for name in NETWORKS for word in ("--model", name)]
    sys.exit(main(["bench", *models, "--batch", "1", "8", "32", "--rivals", "all", "--memory", *sys.argv[1:]]))
