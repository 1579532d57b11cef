"""Behind run.py: protocols, their jobs, and running them."""
