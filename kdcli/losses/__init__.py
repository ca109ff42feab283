"""Losses, and what they are taught by: pure functions of tensors, in fp32, that import nothing but torch."""
