"""GPU operators that know nothing of models."""
