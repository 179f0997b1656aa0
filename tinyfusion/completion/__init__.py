"""Tab completion of the command line in bash, zsh and fish."""
