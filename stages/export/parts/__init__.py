"""What several techniques of export share."""
