"""Where images come from: folders, lists, archives and Parquet files, on disk or in an object store."""
