"""Real images for training, hold-out loss and scoring."""
