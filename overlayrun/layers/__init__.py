"""Overlayfs layers read and written as changes."""
