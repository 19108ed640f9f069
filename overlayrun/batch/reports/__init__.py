"""What a batch leaves for people and for CI."""
