"""What the image looks like: light, background, ground, roadside, vehicles. Nothing in here is ground truth."""
