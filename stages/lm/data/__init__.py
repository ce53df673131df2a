"""Token ids on disk, their splits, and the batches cut from them."""
