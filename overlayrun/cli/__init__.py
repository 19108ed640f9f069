"""Commands: parse, call one function, render, return the exit code."""
