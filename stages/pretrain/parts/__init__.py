"""What several techniques of pretrain share."""
