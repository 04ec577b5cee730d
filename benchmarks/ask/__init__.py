"""Commands that answer a question: explain, pick, fit, doctor."""
