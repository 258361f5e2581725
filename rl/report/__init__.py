"""report.html: one self-contained page about a run, or about several side by side.

python -m rl.report runs/A              writes runs/A/report.html
python -m rl.report runs/A runs/B       writes report.html that compares them
python -m rl.report runs/A --figure F   draws the result as one picture (SVG, PNG or PDF)
"""

from rl.report.page import write_report

__all__ = ["write_report"]
