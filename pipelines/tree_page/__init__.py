"""The expert tree as one page that needs nothing but itself: ``lineage.html``."""

from pipelines.tree_page.page import html
from pipelines.tree_page.thumbnails import thumbnails

__all__ = ["html", "thumbnails"]
