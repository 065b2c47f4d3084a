"""What is learned: pure torch modules, no files, no paths."""
