"""tser: distil a trained ANN into a spiking network, and measure the result."""

__version__ = "0.1.0"
