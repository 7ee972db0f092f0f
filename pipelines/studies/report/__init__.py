"""A study's report: figures, a page, the same as Markdown, and the numbers."""
