"""Environments of rlx's own, each with its picture."""
