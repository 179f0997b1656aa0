"""Studies made of many runs, and tables and pictures from the folders of finished ones."""
