//! The real driver: operating system clock, ZeroMQ sockets, completion polling.
