"""Behind train.py: flags, the config they make, labels for images."""
