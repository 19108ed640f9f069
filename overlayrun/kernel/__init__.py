"""System calls, constants and what this kernel can do."""
