"""The command line of the report: see `python -m rl.report --help`."""

import sys

from rl.config import Parser
from rl.report.page import has_packages, write_report
from rl.report.picture import draw_picture


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m rl.report", description="Report of a run, or of several side by side.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="runs/NAME", help="run folders")
    parser.add_argument("--out", metavar="FILE", help="file to write; default: report.html, in the folder of a single run")
    parser.add_argument("--figure", metavar="FILE", help="draw the result of one run as a picture (svg, png, pdf) instead")
    arguments = parser.parse_args(argv)
    try:
        if arguments.figure and len(arguments.runs) > 1:
            raise ValueError("--figure shows one run")
        if not has_packages():
            return 2
        print(
            draw_picture(arguments.runs[0], arguments.figure)
            if arguments.figure
            else write_report(arguments.runs, arguments.out)
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
