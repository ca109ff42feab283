"""Losses: pure functions of tensors to a scalar, in fp32, that import nothing but torch."""
