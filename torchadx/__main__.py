"""``python -m torchadx``: what to run when something is wrong, or heavy."""

import argparse
import sys
from collections.abc import Sequence

import torchadx
from torchadx.inspect import _command, _doctor

COMMANDS = {
    "doctor": _doctor,
    "inspect": _command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the command line asks for.

    Args:
        arguments: Command-line arguments; ``None`` reads ``sys.argv``.

    Returns:
        The exit status: 0 where all went well.
    """
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchadx", description=torchadx.__doc__)
    parser.add_argument("--version", action="version", version=f"torchadx {torchadx.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
