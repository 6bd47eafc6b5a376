"""Adapters of other suites."""
