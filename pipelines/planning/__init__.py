"""What a pipeline will do and cost, and what is wrong with it, before it runs."""
