"""Files of images and labels: real data sets, distilled shards, stored soft labels."""
