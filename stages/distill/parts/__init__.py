"""What several techniques of distill share."""
