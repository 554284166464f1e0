"""Images and captions, from a folder to batches: scan, captions, buckets, items, cache, loading.

Nothing here knows a model or a method: encoders and tokenizers come in as functions.
"""
