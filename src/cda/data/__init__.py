"""Images and labels: real data sets, batches on the device, distilled shards, stored soft labels."""
