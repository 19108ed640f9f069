"""Where attempts run: on this machine, or on many."""
