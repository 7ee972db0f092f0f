"""Command line, workflow graphs and data of the eDiff-I pipelines."""
