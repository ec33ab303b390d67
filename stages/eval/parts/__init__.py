"""What several techniques of eval share."""
