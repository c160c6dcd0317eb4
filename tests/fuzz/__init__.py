"""Hostile input in bulk: the borders it comes in by (`borders`), hypothesis for long (`campaign`), guided by coverage (`coverage`)."""
