"""What images come from: folders, arrays, tar files, parquet files; local or at a URL.

`opened.open_source` tells them apart by content. All have the interface of `source.Source`.
"""
