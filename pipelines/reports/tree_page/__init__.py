"""The expert tree as one page that needs nothing but itself: ``lineage.html``."""

from pipelines.reports.tree_page.page import html
from pipelines.reports.tree_page.thumbnails import thumbnails

__all__ = ["html", "thumbnails"]
