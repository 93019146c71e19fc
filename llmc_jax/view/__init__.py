"""What runs have logged, as a person looks at it: curves, a picture, a page."""
