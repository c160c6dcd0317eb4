"""Results -> what a person reads. It sees records only."""
