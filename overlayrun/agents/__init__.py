"""What knows one agent: its hooks, its plugins, its protocol."""
