"""What several techniques of prune share."""
