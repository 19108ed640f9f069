"""Branches as folders: `overlayrun open`."""
