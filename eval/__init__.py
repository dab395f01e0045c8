"""Metrics, one family a file: each makes one row per image and sums the rows up into named values with intervals."""
