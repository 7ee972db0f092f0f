"""Before a run: what it will do, cost and take, and what is wrong with its spec."""
