"""Devices: how JAX compiles for them, lanes and environments over several, processes that train together."""
