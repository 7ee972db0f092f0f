"""The expert tree as one self-contained HTML page: ``lineage.html``."""

from pipelines.reports.tree_page.page import html
from pipelines.reports.tree_page.thumbnails import thumbnails

__all__ = ["html", "thumbnails"]
