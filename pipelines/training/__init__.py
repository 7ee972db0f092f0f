"""Training one expert: what runs inside the processes that train it together."""
