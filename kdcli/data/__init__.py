"""Open any source: pictures, sample ids and splits, views, batches, the cache reader."""
