"""Single layers of the files given, or of ``shapes/``; options are passed on to ``mobilenet-ext bench``."""

import sys
from pathlib import Path

from mobilenet_ext.cli import main

if __name__ == "__main__":
    files = [word for word in sys.argv[1:] if word.endswith(".txt")]
    options = [word for word in sys.argv[1:] if word not in files]
    files = files or sorted(map(str, (Path(__file__).parent / "shapes").glob("*.txt")))
    sys.exit(max(main(["bench", "--shapes", file, *options]) for file in files))
