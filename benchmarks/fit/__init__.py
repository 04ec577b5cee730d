"""The largest batch and image that fit in so much memory."""
