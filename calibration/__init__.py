"""What makes the numbers mean something: the camera's geometry on the ground."""
