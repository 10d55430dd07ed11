"""The quality benchmark: how well the product finds known proponents, one module a track (`run`)."""
