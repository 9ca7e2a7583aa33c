"""Counts and energies as others define them, beside ours. A wing."""
