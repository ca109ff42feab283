"""Detection: boxes of objects, and what each of them is."""
