"""The settings of all commands, each defined once: default, help and limits. No Ray and no PyTorch.

The command line, the tables of the documents and the JSON schemas are made from these models, so that no fact about a
setting stands in a second place. Values come from `defaults < --config FILE < --set key=value < flags that were given`.
"""
