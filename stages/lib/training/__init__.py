"""The one training loop: its settings, optimizers, schedule and checkpoints, a file each."""
