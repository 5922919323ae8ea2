"""Bytes from elsewhere: HTTP, ranges, archives, folders and buckets, the catalog of published zoos."""
