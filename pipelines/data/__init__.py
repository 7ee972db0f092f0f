"""A user's image–caption data set, in any of three formats, as rows and refusals.

    list_shards(source)          the units of work, each with the identity of its content
    read_shard(source, shard)    its rows and, with a reason each, what is no row
    pictures.size_of(image)      from the header alone
    sift(row, size, filters)     the row, or why it is refused
    pictures.decode(image)       8-bit RGB

Row and Bad are all that leaves: a row is never lost without a Bad that says so.
"""
