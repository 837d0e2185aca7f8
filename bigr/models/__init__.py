"""The networks: pure PyTorch modules that know no files, no tracking and no command line."""
