//! TLS for listeners: certificates from files, which can be read again without a connection lost.
