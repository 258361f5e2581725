"""The command line of the report: see `python -m rl.report --help`."""

import sys
from pathlib import Path

from rl.config import Parser
from rl.report.comparison import write_comparison
from rl.report.page import has_packages, write_report
from rl.report.picture import draw_picture


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m rl.report", "Report of a run, or of several side by side.")
    parser.set_defaults(out=None, figure=None, table=False, metrics=None)
    parser.add_argument("runs", nargs="+", metavar="runs/NAME", help="run folders")
    parser.add_argument("--out", metavar="PATH", help="report to write (default: report.html, in the folder of a single run)")
    parser.add_argument("--figure", metavar="FILE", help="draw the result of one run as a picture (svg, png, pdf) instead")
    parser.add_argument("--table", action="store_true", help="print a table instead: arms by the flags that differ, over seeds")
    parser.add_argument("--metrics", metavar="NAMES", help="rows of --table, by comma (default: those of the evaluations)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.figure and len(arguments.runs) > 1:
            raise ValueError("--figure shows one run")
        if arguments.table:
            names = arguments.metrics.split(",") if arguments.metrics else None
            print(write_comparison(arguments.runs, names, Path(arguments.out) if arguments.out else None))
            return 0
        if not has_packages():
            return 2
        if arguments.figure:
            print(draw_picture(arguments.runs[0], arguments.figure))
        else:
            print(write_report(arguments.runs, arguments.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
