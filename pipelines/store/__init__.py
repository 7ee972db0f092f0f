"""Where results live: content-addressed nodes, and Parquet shards inside them."""
