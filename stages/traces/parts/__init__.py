"""What several techniques of traces share."""
