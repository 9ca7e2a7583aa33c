"""CSV schemas, plots and console tables."""
