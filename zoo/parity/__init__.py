"""A model's stages beside the recorded outputs of the original implementation."""
