"""peftlab: train, measure and compare parameter-efficient fine-tuning methods."""

__version__ = "0.1.0"
