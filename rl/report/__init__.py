"""report.html: the report of a run, or of several side by side, in one self-contained page.

python -m rl.report runs/A              writes runs/A/report.html
python -m rl.report runs/A runs/B       writes report.html that compares them
python -m rl.report runs/A --figure F   draws the result as one picture (SVG, PNG or PDF)
"""

from rl.report.page import write_report

__all__ = ["write_report"]
