"""Batches of agents: a file of tasks in; checked commits, reports and one exit code out."""
