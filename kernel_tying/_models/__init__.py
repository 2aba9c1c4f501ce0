"""How a model is tied: the plan, tying in place or on a copy, and loading of weights."""
