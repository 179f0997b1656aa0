"""Tables and pictures from the folders of finished runs."""
