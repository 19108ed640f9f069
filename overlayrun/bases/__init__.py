"""Frozen trees that workspaces stand on."""
