"""What Triton's Python backend runs. These files are copied into a model repository and import nothing of walvec."""
