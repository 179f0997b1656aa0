"""What the commands do: configuration in, files out."""
