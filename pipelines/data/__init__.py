"""A user's image–caption data set, in any of four formats, as accepted and rejected rows.

    list_shards(source)            the units of work, each with the identity of its content
    read_shard(source, shard)      accepted rows, and rejected ones with a reason each
    apply_filters(row, filters)    the row if it passes, else why not; decodes no picture
    decode(row.image)              8-bit RGB, or RowError

Every input row ends up as a Row or as a RejectedRow; none is dropped silently.
"""
