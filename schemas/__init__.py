"""What is passed around: records, tables, manifests and errors. Standard library, numpy and pyarrow only."""
