"""Settings: their sections, where they come from, the names behind them, plug-ins."""
