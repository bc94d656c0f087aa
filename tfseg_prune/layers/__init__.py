"""Keras layers that live only while a method trains."""
