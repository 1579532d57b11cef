"""Behind data.py: what is there, downloads, archives."""
