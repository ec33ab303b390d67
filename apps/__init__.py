"""What a person starts and stays in."""
