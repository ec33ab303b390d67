"""What several techniques of data share."""
