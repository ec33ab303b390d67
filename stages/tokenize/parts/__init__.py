"""What several techniques of tokenize share."""
