"""What the techniques of align and the stage share."""
