"""A user's image–caption data set, in any of four formats, as rows and refusals.

    list_shards(source)          the units of work, each with the identity of its content
    read_shard(source, shard)    its rows and, with a reason each, what is no row
    sift(row, filters)           the row if it is wanted, or why not; nothing is decoded yet
    decode(row.image)            8-bit RGB, or BadRow

Row and Bad are all that leaves: a row is never lost without a Bad that says so.
"""
