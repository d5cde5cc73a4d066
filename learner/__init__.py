"""The learner: torch networks, AWAC, the replay mirror, checkpoints. Never imports ray or gymnasium."""
