"""Heads that stand on a model's features where its own classifier does not serve."""
