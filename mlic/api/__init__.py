"""What `import mlic` offers to programs and notebooks: models, data sets and tables."""
