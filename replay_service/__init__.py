"""The data plane: every message, key and script that crosses a process boundary, and the process that serves them.

Actors and the learner import this package and never each other. It needs NumPy, msgpack and redis; it never
imports torch, ray or gymnasium.
"""
