"""Claim cards: what papers have published, one JSON file per claim, with our figures beside it."""
