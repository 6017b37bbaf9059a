//! kvrail: `experiments`.
