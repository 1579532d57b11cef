"""Behind ``paper.py``: the papers' tables and figures as jobs, cells, files and pictures."""
