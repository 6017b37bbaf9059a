//! kvrail: `tests`.
