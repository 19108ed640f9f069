"""Backends: how a workspace gets its copy-on-write tree."""
