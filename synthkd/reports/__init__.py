"""The reports of runs as HTML pages, and the typed results that they are made from."""

from synthkd.reports.grids import save_grid
from synthkd.reports.report import write_report

__all__ = ["save_grid", "write_report"]
