"""What scripts/visualize.py draws: a trained run, its mask, the chosen images, the pictures."""
