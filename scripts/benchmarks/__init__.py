"""Behind bench.py: one file per comparison."""
