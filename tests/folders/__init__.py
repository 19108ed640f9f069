"""Tests of branches as folders."""
