"""Rollout actors and the evaluator: environments, the NumPy policy, and the processes around them.

An actor loads NumPy, gymnasium and MuJoCo, never torch or ray, so it starts fast and stays small.
"""
