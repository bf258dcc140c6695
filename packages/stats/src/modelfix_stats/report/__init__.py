"""The report: one HTML file that opens offline and computes anew for every selection.

Built from data frames and plain values alone; who has records makes these from them.
"""

from modelfix_stats.report.building import build
from modelfix_stats.report.content import CellPage, Content, Picture, Point, Sheet

__all__ = ["CellPage", "Content", "Picture", "Point", "Sheet", "build"]
