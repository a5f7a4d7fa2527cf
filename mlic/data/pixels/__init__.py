"""Pixels: formats of image files, decoding, deep images and augmentation."""
