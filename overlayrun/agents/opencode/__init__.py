"""OpenCode: a workspace for every session of one user interface, and snapshots in its own words."""
