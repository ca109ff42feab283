"""Detection: boxes around objects, and their classes."""
