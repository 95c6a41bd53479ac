"""The command ``hpo-report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hpo_torchrl.reporting import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare training runs from the command line: ``hpo-report DIR [DIR ...]``.

    Args:
        arguments: the arguments; those of the command line by default.

    Raises:
        SystemExit: an argument is refused or no run can be read; the message, on standard error,
            says why.
    """
    parser = argparse.ArgumentParser(
        prog="hpo-report",
        description="Compare training runs: tables and figures with interquartile means and "
        "bootstrap intervals over seeds.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="folder that holds runs, at any depth"
    )
    parser.add_argument(
        "--target",
        type=float,
        default=0.10,
        metavar="GAP",
        help="gap to the reference that training times are measured to (default 0.10: 10 %%)",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder of report.md, the tables and figures; the first DIR by default",
    )
    given = parser.parse_args(arguments)
    try:
        output = given.output or given.folders[0]
        text, written = write_report(given.folders, output, target=given.target)
    except (ValueError, TypeError, OSError) as error:
        print(f"hpo-report: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("hpo-report: error: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None
    print(text)
    print(f"\nwritten: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
