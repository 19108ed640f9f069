"""What the command can see, write and call."""
