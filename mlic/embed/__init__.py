"""`mlic embed`: what a model sees in each image, as one vector for each."""
