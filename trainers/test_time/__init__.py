"""Test-time training: an episode per image, TPT, PromptAlign, RAdaTTT."""
