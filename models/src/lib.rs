//! kvrail: `models`.
