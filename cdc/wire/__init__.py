"""The replication protocol without a socket and without a clock: bytes and numbers in, values out.

``frames``
    What one CopyData message holds: WAL data or a keepalive; and the status reply that goes back.
``pgoutput`` ``messages`` ``reader``
    One message body to one frozen value, for the whole of protocol versions 1 to 4.
``relations``
    What the server said about its tables on this connection.
``tuples``
    The hot path: the wanted cells of a row, everything else stepped over.
``session``
    When a status reply is due, how far may be acknowledged, and whether the peer is still there.

Only :class:`cdc.errors.DecodeError` leaves a decoder, whatever the bytes.
"""
