"""Spiking networks for other programs: NIR, ONNX and safetensors files, checked by loading them."""
