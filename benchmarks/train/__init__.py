"""Training from the command line: data, weights, recipe and what is shown of it."""
