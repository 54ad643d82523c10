"""The subcommands of ``mobilenet-ext``: each module has ``add_parser(subparsers)`` and ``run(args) -> int``."""
