"""Training: recipes, the loop, distribution, checkpoints."""
