"""From cells to artifacts: the plan, the executors (Ray, serial), the loop that drives them."""
