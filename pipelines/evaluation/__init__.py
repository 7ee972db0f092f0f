"""Evaluation as a stream: pictures are drawn, scored and dropped chunk by chunk, by any number of
workers."""
