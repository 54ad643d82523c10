"""``python -m mobilenet_ext`` is ``mobilenet-ext``."""

import sys

from mobilenet_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
