//! The fabric on libibverbs.
#![allow(unsafe_code)]
