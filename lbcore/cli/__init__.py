"""What a person types: the only layer that prints for people."""
