//! Says what is missing to build the feature `verbs`, and how to install it.
//!
//! The build script does it. It is in a crate of its own, without dependencies, because what needs those tools is another crate's build
//! script, which says less, and `engine`'s would only run after that one.
