"""Trackers: TensorBoard, Weights & Biases, MLflow; TRACK names those that a run writes to."""
