"""Plain functions on arrays and tensors: no configuration, no files."""
