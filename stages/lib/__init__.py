"""What at least two stages share. Nothing here knows a stage's name."""
