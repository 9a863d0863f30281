"""Weights of any project into encoders: reading, recognising, converting, downloading, writing our own."""

# How names of weights files end; what a file is, its content says.
SUFFIXES = (".safetensors", ".pt", ".pth", ".pyth", ".bin", ".ckpt", ".tar", ".pkl")
