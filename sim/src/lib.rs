//! kvrail: `sim`.
