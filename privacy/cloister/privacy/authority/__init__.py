"""The key authority on the network, and its command.

::

    cloister authority init DIR      a folder: keys, record, identity, TLS
    cloister authority run DIR       AuthorityService: gRPC over mutual TLS (authority.proto)
    RemoteAuthority                  what the server holds in place of a KeyAuthority

It is never run by the server's operator: see docs/key-authority.md.
"""
