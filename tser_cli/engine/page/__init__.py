"""The report page of tser report. A wing."""
