"""What the programs of a person share: which model is meant, and how it is asked."""
