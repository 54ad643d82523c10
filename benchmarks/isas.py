"""MobileNetV2 once for every instruction set of this machine; options are passed on to ``mobilenet-ext bench``."""

import sys

from mobilenet_ext._library import native
from mobilenet_ext.cli import main

if __name__ == "__main__":
    names = [isa["name"] for isa in native.isas() if isa["supported"] and isa["name"] != "scalar"]
    command = ["bench", "--model", "mobilenet_v2", *sys.argv[1:]]
    sys.exit(max(main([*command, "--isa", name]) for name in names))
