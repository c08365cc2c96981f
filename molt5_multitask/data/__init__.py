"""From files to batches: reading, mixing, packing, augmentation."""
