"""Behind describe.py: language models and what is read of their answers."""
