"""One door (``build``) for every network, and what each offers: preparation, taps, features, head."""
