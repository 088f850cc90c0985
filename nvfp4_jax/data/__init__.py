"""Preparing data: from sources of text to token shards that runs of any size read.

    sources -> documents -> deduplicated, set apart -> tokenizer -> shards -> manifest.json, last

`training.manifest` says what a prepared folder holds; `training.shards` reads it.
"""
