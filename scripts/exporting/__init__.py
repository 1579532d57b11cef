"""What ``train.py --export`` does: a trained classifier that runs without this project."""
