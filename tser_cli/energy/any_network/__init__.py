"""Counting the operations of any network, by a plan that trial runs find. A wing."""
