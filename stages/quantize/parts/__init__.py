"""What several techniques of quantize share."""
