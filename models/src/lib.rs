//! Where every byte of a KV cache lives. Arithmetic only: no I/O, no clock, no threads.
//!
//! A [`Model`] (a [preset](presets) or a HuggingFace [`config`]) with a [`DType`], a [`Parallel`]
//! and a page size makes a [`Layout`]: per rank, pools of equal buffers whose pages hold tokens in
//! strided [`Section`]s. Two layouts of one model make a [`Relation`]: which ranges of which source
//! rank fill which ranges of which destination rank, whatever their TP, PP, DP, page size and page
//! order. It is computed once per pair of layouts, not per request.
//!
//! [`units`] holds the quantities that are written with a unit in an experiment file.

pub mod config;
pub mod layout;
pub mod model;
pub mod parallel;
pub mod presets;
pub mod relation;
pub mod units;

pub use config::ConfigError;
pub use layout::{
    BufferInfo, BufferKind, Component, Layout, LayoutError, PageOrder, PoolLayout, RankLayout, Section,
};
pub use model::{Attention, DType, IndexK, Model, ModelError};
pub use parallel::{Parallel, ParallelError};
pub use presets::UnknownModel;
pub use relation::{Assignment, Feed, Group, PageRange, Relation, RelationError, SectionPair};
pub use units::{Bandwidth, ByteSize, Picos, UnitError};
