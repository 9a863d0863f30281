"""A healthy patient: parts as labelled voxels, their tissue, and the scanner that sees them."""
