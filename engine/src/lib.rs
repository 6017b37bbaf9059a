//! kvrail: `engine`.
