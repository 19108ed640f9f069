"""overlayrun: run a command in its own copy-on-write branch of your git repository."""
