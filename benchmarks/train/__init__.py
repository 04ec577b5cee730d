"""Training from the command line: data, weights, recipe and output."""
