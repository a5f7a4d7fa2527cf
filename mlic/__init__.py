"""mlic: from label files to a defensible multi-label image tagger on a cluster."""

__version__ = "0.1.0"
