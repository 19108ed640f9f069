"""Branches back to their target: a queue in refs, a gate of checks, conflicts handed on, delivery."""
