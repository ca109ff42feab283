"""What trains: turns, the loop, state, caches, the many-head solver. Only this folder knows accelerate."""
