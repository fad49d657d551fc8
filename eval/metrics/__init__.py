"""Metrics, one family a file; each number comes with a pinned protocol."""
