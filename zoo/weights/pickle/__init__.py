"""Read pickles and torch files without executing them."""
