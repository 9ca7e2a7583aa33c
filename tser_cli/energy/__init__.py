"""Counting synaptic operations, and turning counts into joules."""
