"""The launcher: command line, experiment configuration, placement with Ray, supervision and displays. Never torch."""
