"""Behind report.py: results, means, tables, figures, published numbers."""
