"""Detection: boxes around objects, each of a class."""
