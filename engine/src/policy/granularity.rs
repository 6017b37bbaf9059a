//! When KV leaves prefill: in how large pieces.

/// How much KV is handed to the transfer engine at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Granularity {
    /// The whole request, when its prefill has ended. Fewest work requests; nothing overlaps with compute.
    Request,
    /// Every prefill chunk when it ends.
    #[default]
    Chunk,
    /// Groups of so many layers, while the chunk is still being computed.
    LayerWise {
        /// Layers in a group, at least 1.
        layers: u32,
    },
}
