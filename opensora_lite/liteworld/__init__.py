"""LiteWorld, the procedural world of the small models: world draws, describe measures, evaluate scores a model."""
