"""What an index and its shards can say at most, far above what any data set needs."""

# An image of `decoding.image_limits.MAX_PIXELS` as an array file has 400 MB; a photograph, 1 MB.
MOST_SAMPLE_BYTES = 1 << 30
# Heads of models have a row a class, and the index counts the samples of each.
MOST_CLASSES = 10_000_000
# Ten million counts of classes take 100 MB; a shard takes 150 bytes.
MOST_META_BYTES = 256 << 20
# The header of an array file; NumPy itself reads no more than 10 000 bytes of it.
MOST_TABLE_HEADER_BYTES = 1 << 16
# Of the name of a sample. Paths have at most 4096 bytes.
MOST_KEY_BYTES = 4096
# That a pattern with braces stands for: five times the shards of LAION-5B's largest part.
MOST_SHARDS = 1_000_000
MOST_NAME_CHARACTERS = 1 << 28
