"""Toolchains at work in the default sandbox: each does there what it does outside."""
