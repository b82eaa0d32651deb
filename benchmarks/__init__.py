"""What measures speed, run on purpose: never part of the tests."""
